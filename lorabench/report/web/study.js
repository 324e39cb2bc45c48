"use strict";
// A study of forced choices between two images.
//
// data: {study, seed, questions, repeats, controls, ask: question -> text, items, checks}. An item is
// {id, question, subject, style, x, y}, with pictures by number; the page does not know which method made x or y.
// Which items a participant sees, their order and sides follow from the seed and the participant's code, so a reload
// only needs the code and the answers so far.

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = document.getElementById("pictures").textContent.split("\n");
const byId = id => document.getElementById(id);
const STORE = "lorabench-study-" + data.study;
let state = load(); // {participant, started, answers}
let trials = [];
let shownAt = 0;

function load() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    return found && typeof found.participant === "string" && Array.isArray(found.answers) ? found : null;
  } catch {
    return null;
  }
}

function save() {
  try {
    state ? localStorage.setItem(STORE, JSON.stringify(state)) : localStorage.removeItem(STORE);
  } catch { /* without storage a reload starts again */ }
}

// Return a function that returns numbers in [0, 1), seeded by a text (FNV-1a, then mulberry32).
function random(text) {
  let h = 0x811c9dc5;
  for (const letter of text) h = Math.imul(h ^ letter.codePointAt(0), 0x01000193);
  return () => {
    h = (h + 0x6d2b79f5) | 0;
    let t = Math.imul(h ^ (h >>> 15), 1 | h);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function shuffled(list, draw) {
  const found = [...list];
  for (let i = found.length - 1; i > 0; i--) {
    const j = Math.floor(draw() * (i + 1));
    [found[i], found[j]] = [found[j], found[i]];
  }
  return found;
}

// Return the questions of a participant. Items to repeat are in the first half; their repeats are in the second half,
// with the sides swapped.
function drawn(participant) {
  const draw = random(`${data.seed}/${participant}`);
  const own = shuffled(data.items, draw).slice(0, data.questions - data.repeats - data.controls);
  const repeated = own.slice(0, data.repeats);
  const rest = shuffled([...own.slice(data.repeats), ...shuffled(data.checks, draw).slice(0, data.controls)], draw);
  const half = Math.ceil((own.length + data.controls) / 2);
  const early = shuffled([...repeated, ...rest.splice(0, half - data.repeats)], draw);
  const order = [...early, ...rest].map(item => ({item, left: draw() < 0.5 ? "x" : "y", repeat: false}));
  for (const item of repeated) {
    const at = order.findIndex(trial => trial.item === item);
    const least = Math.max(at + 2, half + 1);
    order.splice(least + Math.floor(draw() * (order.length - least + 1)), 0,
      {item, left: order[at].left === "x" ? "y" : "x", repeat: true});
  }
  return order;
}

function show(id) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== id;
  byId(id).querySelector("h1").focus({preventScroll: true});
}

function begin(participant) {
  state = {participant, started: new Date().toISOString(), answers: []};
  save();
  trials = drawn(participant);
  next();
}

function next() {
  const number = state.answers.length;
  if (number === trials.length) return finish();
  const {item, left} = trials[number];
  byId("count").textContent = `${number + 1} of ${trials.length}`;
  byId("progress").value = number / trials.length;
  byId("question").textContent = data.ask[item.question];
  byId("subject").src = source(item.subject);
  byId("style").src = source(item.style);
  for (const side of ["left", "right"]) {
    const which = side === "left" ? left : other(left);
    byId(side).querySelector("img").src = source(item[which]);
    byId(side).classList.remove("chosen");
    byId(side).disabled = false;
  }
  byId("back").disabled = number === 0;
  show("trial");
  shownAt = performance.now();
}

const source = number => "data:image/" + pictures[number];
const other = which => which === "x" ? "y" : "x";

function answer(side) {
  if (byId("trial").hidden || byId(side).disabled) return;
  const {item, left, repeat} = trials[state.answers.length];
  const choice = side === "left" ? left : other(left);
  state.answers.push({item: item.id, choice, left, repeat, seconds: Math.round((performance.now() - shownAt) / 100) / 10});
  save();
  byId(side).classList.add("chosen");
  byId("left").disabled = byId("right").disabled = true;
  setTimeout(next, 140);
}

function back() {
  if (byId("trial").hidden || byId("left").disabled || !state.answers.length) return;
  state.answers.pop();
  save();
  next();
}

function finish() {
  if (!state.finished) {
    state.finished = new Date().toISOString();
    save();
  }
  byId("text").value = JSON.stringify({study: data.study, seed: data.seed, ...state});
  show("end");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([byId("text").value], {type: "application/json"}));
  link.download = `answers-${state.participant.replace(/[^\w-]+/g, "_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const anyCode = () => [...crypto.getRandomValues(new Uint8Array(5))].map(byte => byte.toString(16).padStart(2, "0")).join("");

function welcome() {
  byId("code").value = new URLSearchParams(location.hash.slice(1)).get("participant") ?? "";
  show("start");
}

byId("begin").addEventListener("click", () => begin(byId("code").value.trim() || anyCode()));
byId("code").addEventListener("keydown", event => { if (event.key === "Enter") byId("begin").click(); });
byId("left").addEventListener("click", () => answer("left"));
byId("right").addEventListener("click", () => answer("right"));
byId("back").addEventListener("click", back);
byId("download").addEventListener("click", download);
byId("again").addEventListener("click", () => { state = null; save(); welcome(); });
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || byId("trial").hidden) return;
  const side = {ArrowLeft: "left", ArrowRight: "right"}[event.key];
  if (side) answer(side);
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});

if (state) {
  trials = drawn(state.participant);
  next();
} else {
  welcome();
}
