// Scales, ticks and labels of a plot.

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const pen = document.createElement("canvas").getContext("2d");
pen.font = "12px system-ui, sans-serif";
const widthOf = text => pen.measureText(text).width;

// Return about `count` round numbers in [low, high] with their texts.
function ticksOf(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const by = [1, 2, 5, 10].map(each => each * power).find(each => each >= rough * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / by - 1e-9) * by; at <= high + by * 1e-9; at += by) ticks.push(Math.abs(at) < by * 1e-9 ? 0 : at);
  const digits = Math.max(0, -Math.floor(Math.log10(by) + 1e-9));
  return ticks.map(at => [at, at.toFixed(Math.min(digits, 8))]);
}

const short = value => value >= 1e9 ? `${+(value / 1e9).toPrecision(3)}G` : value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M`
  : value >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : String(+value.toPrecision(3));

// Linear scale over the values plus a margin: {at: value -> pixel, ticks: [[value, text]]}.
function linear(values, start, end, count) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.08 * (high - low) || 0.05 * Math.abs(high) || 1;
  [low, high] = [low - margin, high + margin];
  return {at: value => start + (end - start) * (value - low) / (high - low), ticks: ticksOf(low, high, count)};
}

// Scale for costs: logarithmic if they span more than a factor of 20; zero then has its own place on the left.
function costScale(values, start, end, count) {
  const some = values.filter(value => value > 0), [low, high] = [Math.min(...some), Math.max(...some)];
  if (some.length < 2 || high / low < 20) {
    const scale = linear([0, ...values], start, end, count);
    return {...scale, ticks: scale.ticks.filter(([value]) => value >= 0).map(([value]) => [value, short(value)]), log: false};
  }
  const zero = values.includes(0), from = zero ? start + (end - start) * 0.09 : start;
  const [least, most] = [Math.log10(low), Math.log10(high)], margin = 0.06 * (most - least);
  const at = value => value === 0 ? start + (end - start) * 0.03
    : from + (end - from) * (Math.log10(value) - least + margin) / (most - least + 2 * margin);
  const powers = [];
  const every = Math.max(1, Math.ceil((most - least) / count));
  const steps = most - least < 2 ? [1, 2, 5] : [1];
  for (let power = Math.floor(least); power <= Math.ceil(most); power += every) {
    for (const step of steps) powers.push(step * 10 ** power);
  }
  const inside = powers.filter(value => Math.log10(value) >= least - margin && Math.log10(value) <= most + margin);
  return {at, ticks: [...(zero ? [[0, "0"]] : []), ...inside.map(value => [value, short(value)])], log: true, apart: zero ? from : null};
}

// Place names next to their points if there is room, earlier points first; other names appear on hover and focus.
function placeLabels(points, box) {
  const taken = points.map(({x, y}) => [x - 6, y - 6, x + 6, y + 6]);
  const free = own => own[0] >= box[0] && own[1] >= box[1] && own[2] <= box[2] && own[3] <= box[3]
    && !taken.some(other => own[0] < other[2] && own[2] > other[0] && own[1] < other[3] && own[3] > other[1]);
  return points.map(({x, y, name}) => {
    const width = widthOf(name);
    const spots = [[9, 4], [-9 - width, 4], [-width / 2, -10], [-width / 2, 19], [8, -7], [8, 15], [-8 - width, -7], [-8 - width, 15]];
    for (const [dx, dy] of spots) {
      const own = [x + dx - 2, y + dy - 11, x + dx + width + 2, y + dy + 3];
      if (free(own)) { taken.push(own); return [x + dx, y + dy]; }
    }
    return null;
  });
}
