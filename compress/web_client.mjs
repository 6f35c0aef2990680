// The side of `web_host.py` that runs JavaScript: a page in a browser, or Node with the server's address and the folder
// of onnxruntime-web's builds as arguments.

const inNode = typeof process !== "undefined" && process.versions?.node;
const base = inNode ? process.argv[2] : location.href;

// Brings an answer, and waits for the next input; null at the end.
async function exchange(facts, body) {
  const headers = { "X-Facts": encodeURIComponent(JSON.stringify(facts)) };
  const reply = await fetch(base + "next", { method: "POST", headers, body: body ?? new Uint8Array(0) });
  if (!reply.ok) return null;
  const shape = reply.headers.get("X-Shape").split(",").map(Number);
  return { shape, data: new Float32Array(await reply.arrayBuffer()) };
}

async function load() {
  const dist = inNode ? process.argv[3] : base + "dist/";
  const ort = await import(dist + (inNode ? "ort.node.min.mjs" : "ort.wasm.min.mjs"));
  const { threads } = await (await fetch(base + "settings.json")).json();
  // Without isolation the library takes one thread and goes on.
  if (threads > 1 && !inNode && !crossOriginIsolated) throw new Error("the page is not isolated: no threads");
  ort.env.wasm.numThreads = threads;
  if (!inNode) ort.env.wasm.wasmPaths = dist;
  const model = new Uint8Array(await (await fetch(base + "model.onnx")).arrayBuffer());
  const start = performance.now();
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const facts = {
    host: inNode ? `Node ${process.version}` : navigator.userAgent.match(/\S*Chrome\/\S+/)?.[0] ?? navigator.userAgent,
    threads: ort.env.wasm.numThreads,
    create_ms: performance.now() - start,
    batch: session.inputMetadata[0].shape[0],
  };
  return { ort, session, facts };
}

function failure(error, blame) {
  return { error: String(error?.message ?? error).slice(0, 2000), blame };
}

async function main() {
  let loaded;
  try {
    loaded = await load();
  } catch (error) {
    // the library speaks of "backends" where WebAssembly itself did not start
    const own = !/Can't create a session|ERROR_CODE/.test(String(error?.message));
    await exchange(failure(error, own ? "runtime" : "file"));
    return;
  }
  const { ort, session, facts } = loaded;
  let task = await exchange(facts);
  while (task !== null) {
    const input = new ort.Tensor("float32", task.data, task.shape);
    try {
      const start = performance.now();
      const outputs = await session.run({ [session.inputNames[0]]: input });
      const ms = performance.now() - start;
      const logits = outputs[session.outputNames[0]];
      task = await exchange({ shape: logits.dims, ms }, logits.data);
    } catch (error) {
      task = await exchange(failure(error, "runtime"));
    }
  }
}

// A server that is gone ends Node; a page is closed by whoever opened its browser.
main().then(() => inNode && process.exit(0), () => inNode && process.exit(1));
