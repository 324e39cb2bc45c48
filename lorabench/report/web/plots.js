// Two plots of the visible rows: style against content, and quality against a cost.

const columnOf = name => data.columns.find(column => column.name === name);
const axisTitle = column => column.backbone && !column.name.endsWith(column.backbone) ? `${column.name} (${column.backbone})` : column.name;

function plot(place, points, xTitle, yTitle, scaleOf, xText, yText) {
  const width = Math.max(280, Math.floor(place.clientWidth)), height = Math.round(Math.min(440, Math.max(300, width * 0.72)));
  const edge = {left: 52, right: 14, top: 12, bottom: 44};
  const xs = points.flatMap(({x, xLow, xHigh}) => [x, xLow, xHigh]).filter(value => value !== null && value !== undefined);
  const ys = points.flatMap(({y, yLow, yHigh}) => [y, yLow, yHigh]).filter(value => value !== null && value !== undefined);
  if (!points.length) {
    place.replaceChildren(make("p", {class: "none"}, "No visible row has both values."));
    return;
  }
  const across = scaleOf(xs, edge.left, width - edge.right, Math.floor(width / 90));
  const up = linear(ys, height - edge.bottom, edge.top, 5);
  const sheet = draw("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `${yTitle} against ${xTitle}`});
  const [bottom, right] = [height - edge.bottom, width - edge.right];
  for (const [value, text] of across.ticks) {
    const x = across.at(value);
    sheet.append(draw("line", {class: "rule", x1: x, x2: x, y1: edge.top, y2: bottom}),
      draw("text", {x, y: bottom + 17, "text-anchor": "middle"}, text));
  }
  for (const [value, text] of up.ticks) {
    const y = up.at(value);
    sheet.append(draw("line", {class: "rule", x1: edge.left, x2: right, y1: y, y2: y}),
      draw("text", {x: edge.left - 8, y: y + 4, "text-anchor": "end"}, text));
  }
  if (across.apart) sheet.append(draw("line", {class: "apart", x1: across.apart - 8, x2: across.apart - 8, y1: edge.top, y2: bottom}));
  sheet.append(draw("text", {class: "title", x: (edge.left + right) / 2, y: height - 6, "text-anchor": "middle"}, `${xTitle}${across.log ? " (log scale)" : ""}`),
    draw("text", {class: "title", x: 12, y: (edge.top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(edge.top + bottom) / 2})`}, yTitle));
  const at = points.map(point => ({...point, name: plain(point.row.label), px: across.at(point.x), py: up.at(point.y)}));
  const first = [...at].sort((a, b) => a.row.frame - b.row.frame);
  const spots = placeLabels(first.map(({px, py, name}) => ({x: px, y: py, name})), [edge.left + 2, edge.top, right, bottom - 2]);
  const labels = new Map(first.map((point, i) => [point.row, spots[i]]));
  sheet.append(draw("g", {}, ...at.flatMap(point => barsOf(point, across, up)))); // below the names
  for (const point of [...at].sort((a, b) => b.row.frame - a.row.frame)) {
    sheet.append(markOf(point, labels.get(point.row), xTitle, yTitle, xText, yText));
  }
  place.replaceChildren(sheet);
}

// Interval bars of a point, along each axis that has an interval.
function barsOf({row, px, py, xLow, xHigh, yLow, yHigh}, across, up) {
  const kind = row.frame ? "bar frame" : "bar", bars = [];
  if ((xLow ?? null) !== null) bars.push(draw("line", {class: kind, x1: across.at(xLow), x2: across.at(xHigh), y1: py, y2: py}));
  if ((yLow ?? null) !== null) bars.push(draw("line", {class: kind, x1: px, x2: px, y1: up.at(yLow), y2: up.at(yHigh)}));
  return bars;
}

function markOf(point, label, xTitle, yTitle, xText, yText) {
  const {row, px, py, name} = point;
  const kind = row.frame ? "frame" : row.label === data.reference ? "reference" : "method";
  const facts = [[xTitle, xText(point)], [yTitle, yText(point)]];
  const mark = draw("g", {
    class: `mark ${kind}`, tabindex: 0, role: "img", "data-row": row.label,
    "aria-label": `${name}: ${facts.map(fact => fact.join(" ")).join(", ")}`,
  });
  mark.append(draw("circle", {class: "reach", cx: px, cy: py, r: 12}), draw("circle", {class: "dot", cx: px, cy: py, r: 5}));
  if (label) mark.append(draw("text", {class: "name", x: label[0], y: label[1]}, name));
  const show = () => hint(mark.querySelector(".dot"), make("b", {}, name), make("dl", {}, ...facts.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)])));
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", () => mark.matches(":focus-visible") && show());
  for (const leave of ["pointerleave", "blur"]) mark.addEventListener(leave, () => { tip.hidden = true; });
  return mark;
}

const interval = (line, digits) => line.mean.toFixed(digits)
  + (line.low === null || line.low === undefined ? "" : ` [${line.low.toFixed(digits)}, ${line.high.toFixed(digits)}]`);

function drawTradeoff() {
  const [x, y] = [columnOf(state.x), columnOf(state.y)];
  const points = rowsShown().filter(row => state.frames || !row.frame).flatMap(row => {
    const [a, b] = [lineOf(row, x.name), lineOf(row, y.name)];
    return a && b ? [{row, a, b, x: a.mean, xLow: a.low, xHigh: a.high, y: b.mean, yLow: b.low, yHigh: b.high}] : [];
  });
  plot(byId("tradeoff-plot"), points, axisTitle(x), axisTitle(y), linear,
    ({a}) => interval(a, x.digits), ({b}) => interval(b, y.digits));
}

function drawCosts() {
  const [cost, quality] = [data.costs.find(each => each.name === state.cost), columnOf(state.quality)];
  const points = rowsShown().flatMap(row => {
    const [a, b] = [row.costs[cost.name], lineOf(row, quality.name)];
    return a && a.value !== null && b ? [{row, a, b, x: a.value, y: b.mean, yLow: b.low, yHigh: b.high}] : [];
  });
  plot(byId("cost-plot"), points, cost.short, axisTitle(quality), costScale, ({a}) => a.text, ({b}) => interval(b, quality.digits));
}

const metrics = data.columns.map(column => [column.name, column.name]);
byId("tradeoff-axes").append(picker("x", "x", metrics), picker("y", "y", metrics),
  picker("rows", "frames", [["1", "all"], ["", "methods"]]));
part(["x", "y", "frames", ...FILTERS], drawTradeoff);
const redraw = [drawTradeoff];
if (data.costs.length) {
  byId("cost-axes").append(picker("x", "cost", data.costs.map(cost => [cost.name, cost.short])), picker("y", "quality", metrics));
  part(["cost", "quality", ...FILTERS], drawCosts);
  redraw.push(drawCosts);
}
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== lastWidth) redraw.forEach(each => each());
  lastWidth = innerWidth;
});
