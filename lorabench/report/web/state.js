"use strict";
// The data of the page, the reader's choices, and their encoding in the URL.
//
// data: {columns, costs, rows, pairs, seeds, scored, images, worst, disagreements, reference, mark}; see report/content.py.
// Names, prompts and configs come from users, so text is inserted with textContent only.

const data = JSON.parse(document.getElementById("data").textContent);
const indices = [...new Set(data.images.map(image => image.index))].sort((a, b) => a - b);
const contents = [...new Set(data.pairs.map(pair => pair.content))];
const styles = [...new Set(data.pairs.map(pair => pair.style))];
const byId = id => document.getElementById(id);
const plain = label => label.replaceAll("_", " ");
const pairName = pair => `${pair.content} in ${pair.style}`;

// Return the first of these metrics that the table has, else the column at index `otherwise`.
const firstOf = (names, otherwise) => (names.map(name => data.columns.find(column => column.short === name)).find(Boolean)
  ?? data.columns[Math.min(otherwise, data.columns.length - 1)]).name;

// The URL contains all choices that differ from the defaults, so a view can be shared. Lists contain hidden names.
const defaults = {
  sort: "", down: "1", show: "scores", seed: data.seeds[0], image: String(indices[0]), turn: "", open: "",
  x: firstOf(["dino/content", "clip_i/content"], 0), y: firstOf(["csd/style", "clip_i/style"], 1),
  quality: firstOf(["csd/style", "clip_i/style"], 0), cost: data.costs[0]?.name ?? "", frames: data.rows.filter(row => !row.frame).length > 1 ? "" : "1", worst: "4",
  row: [], content: [], style: [],
};
const state = {};
const parts = []; // [names of choices, function that redraws when they change]

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(defaults)) {
    state[name] = Array.isArray(value) ? given.getAll(name) : given.get(name) ?? value;
  }
  const known = { // the URL may come from another report
    seed: data.seeds, image: indices.map(String), show: ["scores", "differences", "ranks", "costs"],
    x: data.columns.map(column => column.name), y: data.columns.map(column => column.name),
    quality: data.columns.map(column => column.name), cost: data.costs.map(cost => cost.name),
  };
  for (const [name, values] of Object.entries(known)) {
    if (!values.includes(state[name])) state[name] = defaults[name];
  }
}

function write() {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(defaults)) {
    if (Array.isArray(value)) state[name].forEach(each => given.append(name, each));
    else if (state[name] !== value) given.set(name, state[name]);
  }
  history.replaceState(null, "", "#" + given);
}

function part(names, draw) {
  parts.push([names, draw]);
}

function choose(changes) {
  const changed = Object.keys(changes).filter(name => String(state[name]) !== String(changes[name]));
  Object.assign(state, changes);
  write();
  for (const [names, draw] of parts) {
    if (names.some(name => changed.includes(name))) draw();
  }
}

const FILTERS = ["row", "content", "style"];
const rowShown = row => !state.row.includes(row.label);
const pairShown = pair => !state.content.includes(pair.content) && !state.style.includes(pair.style);
const rowsShown = () => data.rows.filter(rowShown);
const pairsShown = () => data.pairs.filter(pairShown);
const isPart = () => pairsShown().length < data.pairs.length; // means are then recomputed and have no interval
const imageShown = image => rowShown(data.rows[image.row]) && pairShown(data.pairs[image.pair]);

// Return a row's line in a column: {mean, low, high, difference, ...}; only {mean} if some pairs are hidden.
const lines = new Map();
part(FILTERS, () => lines.clear());

function lineOf(row, column) {
  if (!isPart()) return row.scores[column];
  const key = `${row.label} ${column}`;
  if (!lines.has(key)) lines.set(key, meanOf(row, column));
  return lines.get(key);
}

function meanOf(row, column) {
  let [sum, weight] = [0, 0];
  for (const [pair, [value, heavy]] of Object.entries(row.pairs[column] ?? {})) {
    if (value !== null && pairShown(data.pairs[pair])) { sum += value * heavy; weight += heavy; }
  }
  return weight ? {mean: sum / weight, low: null, high: null} : undefined;
}

function groupBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    groups.has(key) ? groups.get(key).push(item) : groups.set(key, [item]);
  }
  return groups;
}

// Create an element: attributes by name, listeners as functions named "on...", children as nodes or text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

// Create a labeled select for one choice.
function picker(label, name, options) {
  const select = make("select", {"data-choice": name, onchange: event => choose({[name]: event.target.value})});
  for (const [value, text] of options) select.append(new Option(text, value));
  part([name], () => { select.value = state[name]; });
  return make("label", {class: "pick"}, make("span", {}, label), select);
}
