"use strict";
/* What script adds to a page that is whole without it: tables that sort, rows that can be filtered, commands to copy.
   Text is only ever set as text; what was asked stands in the address after #rows=, so that a link keeps it. */
{
  const KEY = "rows";

  const make = (name, properties, ...children) => {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  };

  /* A number where the cell has one, else its words; rows that were not measured have no such cell. */
  const valueOf = (row, column, numeric) => {
    const cell = row.cells[column];
    if (!cell) return null;
    return numeric ? ("v" in cell.dataset ? Number(cell.dataset.v) : null) : cell.textContent;
  };

  const compared = (a, b, direction) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };

  const makeSortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
        const order = next === undefined ? "ascending" : next;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order) head.setAttribute("aria-sort", order);
        const numeric = original.some((row) => row.cells[column] && "v" in row.cells[column].dataset);
        const direction = order === "descending" ? -1 : 1;
        const keyed = original.map((row) => [valueOf(row, column, numeric), row]);
        if (order) keyed.sort((a, b) => compared(a[0], b[0], direction));
        body.append(...keyed.map((pair) => pair[1]));
      });
    });
  };

  const filters = [];

  const makeFilterable = (table) => {
    const rows = [...table.tBodies[0].rows].map((row) => [row.textContent.toLowerCase(), row]);
    const name = table.getAttribute("aria-label");
    const input = make("input", { type: "search", placeholder: "int8 !invalid", autocomplete: "off", spellcheck: false });
    const count = make("output", {});
    const label = make("label", { className: "filter" }, "Filter rows ", input, count);
    input.setAttribute("aria-label", `Filter the rows of: ${name}. Words that a row must have; ! before one that it must not`);
    table.parentElement.before(label);
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [text, row] of rows) {
        row.hidden = !words.every((word) => (word[0] === "!" ? !word[1] || !text.includes(word.slice(1)) : text.includes(word)));
        shown += !row.hidden;
      }
      count.textContent = words.length ? `${shown} of ${rows.length}` : "";
    };
    filters.push({ input, apply });
    input.addEventListener("input", () => {
      apply();
      const asked = filters[0].input.value;
      if (input === filters[0].input) history.replaceState(null, "", asked ? `#${new URLSearchParams({ [KEY]: asked })}` : "#");
    });
  };

  const makeCopyable = (block) => {
    const button = make("button", { type: "button", className: "copy" }, "copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(block);
        button.textContent = "selected: press Ctrl+C";
      }
    });
    block.before(button);
  };

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("table.filterable").forEach(makeFilterable);
  document.querySelectorAll("pre").forEach(makeCopyable);
  const asked = new URLSearchParams(location.hash.slice(1)).get(KEY);
  if (filters.length && asked) {
    filters[0].input.value = asked;
    filters[0].apply();
  }
}
