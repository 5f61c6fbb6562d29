// Histograms that filter, and curves over steps, as SVG and buttons.

/** bins: {edges: [n + 1 numbers], counts: [n]}; pick(low, high) when a bar is chosen; picked() says what is. */
function histogram(title, bins, pick, picked, unit) {
  const most = Math.max(1, ...bins.counts);
  const total = bins.counts.reduce((sum, value) => sum + value, 0);
  const bars = bins.counts.map((found, place) => {
    const low = bins.edges[place], high = place + 1 < bins.counts.length ? bins.edges[place + 1] - (bins.whole ? 1 : 1e-9) : bins.edges[place + 1];
    const words = `${COUNT(low)}${high > low ? ` to ${COUNT(bins.whole ? high : bins.edges[place + 1])}` : ""} ${unit || ""}: ${COUNT(found)} samples`;
    const bar = el("span", {style: `height: ${found ? Math.max(2, 100 * found / most) : 0}%`});
    return el("button", {type: "button", title: words, "aria-label": `${title}, ${words}`, "aria-pressed": String(Boolean(picked && picked(low, high))),
      onclick: () => pick(low, high)}, bar);
  });
  return el("div", {class: "panel"}, el("h3", {}, title), el("div", {class: "histogram"}, bars),
    el("div", {class: "ends"}, el("span", {}, COUNT(bins.edges[0])), el("span", {}, `${COUNT(total)} samples`), el("span", {}, COUNT(bins.edges[bins.edges.length - 1]))));
}

const COLOURS = ["#3b82f6", "#f97316", "#10b981", "#d946ef", "#eab308", "#ef4444", "#06b6d4", "#84cc16"];

/** series: [{name, points: [[x, y]], dots}]; y null is a gap. */
function curve(title, series, {unit = "", log = false} = {}) {
  const W = 520, H = 200, L = 56, R = 10, T = 10, B = 24;
  const points = series.flatMap((item) => item.points.filter((point) => point[1] !== null && (!log || point[1] > 0)));
  const box = el("div", {class: "panel"}, el("h3", {}, title));
  if (!points.length) { box.append(el("p", {class: "faint"}, "nothing yet")); return box; }
  const scale = (value) => (log ? Math.log10(value) : value);
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) { x0 = Math.min(x0, x); x1 = Math.max(x1, x); y0 = Math.min(y0, scale(y)); y1 = Math.max(y1, scale(y)); }
  if (x1 === x0) x1 = x0 + 1;
  if (y1 === y0) { y1 += Math.abs(y1) / 10 || 1; y0 -= Math.abs(y0) / 10; }
  const X = (x) => L + (W - L - R) * (x - x0) / (x1 - x0);
  const Y = (y) => H - B - (H - T - B) * (scale(y) - y0) / (y1 - y0);
  const svg = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const last = series.map((item) => `${item.name} ${item.points.length ? short(item.points[item.points.length - 1][1]) : "-"}`).join(", ");
  const drawn = svg("svg", {viewBox: `0 0 ${W} ${H}`, class: "curve", role: "img", "aria-label": `${title}: last ${last}`});
  for (let step = 0; step <= 3; step++) {
    const value = y0 + (y1 - y0) * step / 3, y = H - B - (H - T - B) * step / 3;
    drawn.append(svg("line", {x1: L, x2: W - R, y1: y, y2: y, class: "axis"}), svg("text", {x: L - 6, y: y + 4, "text-anchor": "end"}, short(log ? 10 ** value : value, 3)));
  }
  drawn.append(svg("text", {x: L, y: H - 6}, short(x0)), svg("text", {x: W - R, y: H - 6, "text-anchor": "end"}, `step ${short(x1)}`));
  series.forEach((item, number) => {
    const colour = COLOURS[number % COLOURS.length];
    let path = "", open = false;
    for (const [x, y] of item.points) {
      if (y === null || (log && y <= 0)) { open = false; continue; }
      path += `${open ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
      open = true;
      if (item.dots) drawn.append(svg("circle", {cx: X(x), cy: Y(y), r: 2.5, fill: colour}));
    }
    drawn.append(svg("path", {d: path, class: "line", stroke: colour, ...(item.dashed ? {"stroke-dasharray": "5 4"} : {})}));
  });
  box.append(drawn);
  if (series.length > 1) box.append(el("div", {class: "legend"}, series.map((item, number) => el("span", {}, el("i", {style: `background: ${COLOURS[number % COLOURS.length]}`}), item.name))));
  if (unit) box.append(el("div", {class: "faint small"}, unit));
  return box;
}

function short(value, digits = 4) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size >= 10000 || Number.isInteger(value)) return COUNT(Math.round(value));
  if (size && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

const GROUPS = [
  ["Loss", ["loss", "eval_loss"]], ["Learning rate", ["learning_rate"]], ["Gradient norm", ["grad_norm"]],
  ["Tokens per second", ["tokens_per_second", "supervised_tokens_per_second"]], ["Images per second", ["images_per_second"]],
  ["Fill of rows, waiting for images", ["row_fill", "data_wait"]], ["Share of the device's peak (MFU)", ["mfu"]],
  ["Memory, GB", ["memory_gb"]],
];
const DOTS = /^eval_/;

/** Curves of a run, grouped; series of other keys that start alike (loss/NAME, eval_NAME) come in one chart. */
function curveGroups(curves) {
  const left = new Set(Object.keys(curves));
  const groups = [];
  const add = (title, keys) => {
    const there = keys.filter((key) => left.has(key));
    there.forEach((key) => left.delete(key));
    if (there.length) groups.push([title, there]);
  };
  for (const [title, keys] of GROUPS) add(title, keys);
  add("Loss of each source", [...left].filter((key) => key.startsWith("loss/")).sort());
  add("Share of each source", [...left].filter((key) => key.startsWith("share/")).sort());
  add("Scores of generated answers", [...left].filter((key) => DOTS.test(key)).sort());
  for (const key of [...left].sort()) add(key, [key]);
  return groups;
}
