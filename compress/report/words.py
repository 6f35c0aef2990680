"""The sentences that explain the page to its reader."""

RESULTS = (
    "Latency of one query in a process of its own; top-1 of the same bytes in the same runtime on every image of the "
    "report split. In brackets: 95 % intervals. Highlighted: the cell that the verdict speaks of."
)
PARETO = (
    "Up and to the left is better. Bars: 95 % intervals. Area: file size. Ring: teacher. Faded: another cell is better."
)
ECDF = (
    "Share of queries that took at most this long; the slowest 1 % lie beyond the end of each line. "
    "Marks: p50, and p90 and p99 where there are enough queries."
)
FOREST = (
    "Paired by round, with 95 % intervals. Shaded: the noise band of 2 %. The control compares the same bytes under "
    "two names and should contain 1."
)
ROUNDS = "A slope is drift, a jump is a neighbour on the machine. Shaded: the noise band of 2 %."
DRAWN = (
    "{shown} of {every} cells have a name, a line or a row here: what the verdict speaks of, the teacher beside it, "
    "the Pareto front, then the first ones. The table has all."
)
STAGES = (
    "Change of top-1 in points against the stage's parent; decisions look at the select split only. "
    "Latency and bytes: how many times better than the parent."
)
WATERFALL = "On the report split, with 95 % intervals. Faded: not kept."
SENSITIVITY = (
    "Lines: top-1 on images of select before any recovery, with a part of this layer's channels masked, the least "
    "important first, and all other layers whole; dashed: nothing masked. Bars: the part of its channels that went."
)
LOSSES = "As logged while training."
CHOICE = (
    "Bytes and latency are of files with untrained weights, which neither depends on but for some bytes; MACs stand "
    "for capacity. The latencies are a first look, in the smoke tier."
)
TREE = (
    "Each square is the filter of an inner node: images that are bright where it is blue go right, where it is orange "
    "left. A line is as wide as the share of the report images that go that way. Each leaf holds one distribution over "
    "the classes, in their order; an image is answered by the leaf of its most probable path. "
    "Drawn is the float network; 8 bits may turn elsewhere."
)
TREE_CUT = " The tree is deeper than what is drawn."
TREE_PATHS = "The first image of each of some classes of the report split: the filters on its way, and its leaf."
RELIABILITY = (
    "The images in fifteen bins of equally many, by the probability of the answer. Below the dotted line answers are "
    "surer than they are right. The calibration error is the mean distance from it; a temperature, fitted on the "
    "select split, divides the logits and changes no answer."
)
ROOFLINE = (
    "Multiply-adds a second against multiply-adds for each byte of the file. The roof is what this CPU showed beside "
    "the cells, at as many threads: a float32 matrix product and the sum of two large arrays, both by numpy. A file "
    "that comes from memory for each query lies below the slope; one that stays in a cache may lie above it, and int8 "
    "above the peak, which is that of float32."
)
RAW = "from report.json beside this file, which holds every number of it, each round's distribution by quantiles."
ELSEWHERE = (
    "CPUs without VNNI clip sums of two int8 products to 16 bits, others add exactly, so one file may give other "
    "answers on another CPU. Top-1 is against the float file that int8 came from, on the report images."
)
CONVERTED = (
    "Every file was converted from the ONNX file in a locked-up process, and asked about the same images in its "
    "runtime. Float files may differ by a part of the logits' spread; int8 files have to give the same answer on 98 % "
    "of the images, and must not be shown, by a 95 % interval, to lose more than a point. They are compared with the "
    "ONNX file, or, where a runtime quantizes by rules of its own, with that file in float. What is refused is not "
    "offered. The largest difference is in parts of the spread."
)
CONVERTED_ONLY = (
    "Every file was converted from the ONNX file in a locked-up process, and timed. What it answers was not looked at "
    "here: `compress convert` compares it with the ONNX file."
)
LADDER = (
    "Each rung is tried on top of those that were better, until the file costs no more than was allowed on the select "
    "images, with 95 % confidence where there are images enough for that; files that chance cannot tell apart are "
    "told by their agreement with float. Times are those of making the file from its float one, without what a rung "
    "measured first."
)
LAYERS = (
    "Part of int8's error that goes when this layer alone stays in float; the error is the mean squared difference of "
    "the logits from the float file's, on train images. Coloured: the layers that stay in float."
)
SUSTAINED = (
    "Each cell worked in one process without a pause; the line is the median of each window, the faint one its 90th "
    "percentile, against the first window's median; dotted is 10 % slower. What rises is the machine holding back, as "
    "phones and boards do when they are warm; or a neighbour. One cell came after the other, on the machine as the one "
    "before left it. Energy is that of the whole processor by its own counter, less what it took when idle just before "
    "and after: of everything that ran, and of nothing beside the processor."
)
PACED = (
    "Queries came at this rate whether the one before was done or not; a latency counts from the moment at which its "
    "query was due. Between queries the processor rests, which makes most answers slower than back to back."
)

CORRUPTIONS = (
    "Top-1 on the report images made worse on purpose: the mean of three severities of each kind, and with it the "
    "mild, the middle and the strong one. All: the change of the file's own top-1 by the mean corruption; and last, "
    "how that differs from the teacher's change on the same images."
)
CORRUPTIONS_DRAWN = (
    "A line spans a kind's severities, a mark is their mean; the first row is of the images as they are."
)
GLOSSARY = {
    "top-1": "Share of the images whose most probable class is the right one. Points are percentage points of it.",
    "95 % interval": "Where the true value lies in 19 of 20 repetitions. Of shares by Wilson, of paired differences by "
    "Tango, of latencies by resampling whole rounds, of speed-ups by Student's t over the logarithms of each round's.",
    "round, visit": "In a round every cell is measured once, in a new order; a visit is one such measurement, in a "
    "process of its own.",
    "cell": "One file in one runtime, with a number of threads and a batch size.",
    "A/A control": "The first file measured once more under another name. Both are the same bytes: a ratio away from 1 "
    "says that the machine made it up.",
    "median, p90, p99": "Half, 90 % and 99 % of the queries took at most so long. The last is what slow days are like.",
    "flips": "Images whose answer changed: from right to wrong, from wrong to right, from one wrong class to another.",
    "KL": "Kullback and Leibler's divergence of a file's probabilities from the teacher's: 0 where they are the same.",
    "outliers": "Queries beyond Tukey's fences, which lie 1.5 times the distance of the quartiles outside of them; far "
    "ones lie beyond 3 times that. They are counted and stay in every number.",
    "calibration error": "How far the probability of an answer is, on average, from how often such answers are right.",
    "peak memory": "The most that a process held which answered a few queries, with nothing timed; own: what of it "
    "came with the runtime and the file; PSS: its part of what is shared with other processes, at the end; no "
    "arena: the most where the runtime gives back at once what an inference frees; GPU: what the driver counts as its.",
    "MAC": "A multiplication with its addition. Convolutions and linear layers are counted, nothing else.",
    "int8, float32": "Numbers of 8 bits, with a scale for each channel, and of 32 bits.",
    "select, report": "Images that choices were made on, and images that were asked once, at the end.",
    "Pareto front": "The cells of which no other one is at least as good in latency and accuracy, and better in one.",
}
