// Image buttons: an image is decoded only while it is near the viewport; hover and focus show its scores.

const pictures = byId("pictures").textContent.split("\n");
const isFile = number => pictures[number].startsWith("./"); // next to the page, because it would be too large
const source = number => isFile(number) ? pictures[number] : "data:image/" + pictures[number];
const tip = byId("tip");

const places = new Map(data.images.map((image, id) => [`${image.row} ${image.pair} ${image.seed} ${image.index}`, id]));
const imageAt = (row, pair, seed = state.seed, index = state.image) =>
  places.get(`${data.rows.indexOf(row)} ${data.pairs.indexOf(pair)} ${seed} ${index}`);

const near = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) isIntersecting ? fill(target) : target.replaceChildren();
}, {rootMargin: "300px"});

function fill(holder) {
  const image = holder.firstChild ?? make("img", {alt: holder.dataset.alt ?? "", decoding: "async", draggable: "false"});
  if (image.dataset.picture !== holder.dataset.picture) {
    image.dataset.picture = holder.dataset.picture;
    image.src = source(holder.dataset.picture);
  }
  if (!image.isConnected) holder.append(image);
}

// Details of an image button, which shows an image of a row or a reference of a pair.
function detailsOf(shot) {
  const pair = data.pairs[shot.dataset.pair];
  if (shot.dataset.role) {
    return {
      pair, picture: shot.dataset.picture, scores: {}, facts: [],
      name: `${shot.dataset.role} reference ${+shot.dataset.number + 1} of ${pair[shot.dataset.role]}`,
    };
  }
  const image = data.images[shot.dataset.image];
  return {
    pair, picture: image.picture, image, file: image.file ?? (isFile(image.picture) ? pictures[image.picture] : null),
    scores: Object.fromEntries(data.scored.map((name, at) => [name, image.scores[at]]).filter(([, value]) => value !== null)),
    name: `${pairName(pair)}, ${plain(data.rows[image.row].label)}`,
    facts: [pair.prompts[image.prompt], `image ${image.index}, seed ${image.seed}`],
    noise: image.noise,
  };
}

// Button that shows an image once it is near the viewport.
function shotOf(id, why) {
  const shot = make("button", {class: "shot", type: "button", tabindex: -1});
  if (why) shot.dataset.why = why;
  point(shot, id);
  near.observe(shot);
  return shot;
}

function point(shot, id) {
  const image = data.images[id];
  Object.assign(shot.dataset, {image: id, pair: image.pair, picture: image.picture});
  const {name, facts} = detailsOf(shot);
  shot.setAttribute("aria-label", [name, facts[1]].join(", "));
  if (shot.firstChild) fill(shot);
}

function referenceOf(pair, role, number) {
  const shot = make("button", {class: "shot", type: "button", tabindex: -1});
  Object.assign(shot.dataset, {pair: data.pairs.indexOf(pair), role, number, picture: pair.references[role][number]});
  shot.setAttribute("aria-label", detailsOf(shot).name);
  near.observe(shot);
  return shot;
}

// Remove all image buttons; the observer would otherwise keep them in memory.
function clear(place) {
  for (const shot of place.querySelectorAll(".shot")) near.unobserve(shot);
  place.replaceChildren();
}

function scoreList(scores) {
  return make("dl", {}, ...Object.entries(scores).flatMap(([name, value]) =>
    [make("dt", {}, name), make("dd", {}, value.toFixed(3))]));
}

let hinted = null; // element that the hint belongs to

function hint(anchor, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  hinted = anchor;
  placeHint();
}

function placeHint() {
  const at = hinted.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = at.bottom + 8 + size.height < innerHeight;
  tip.style.top = `${below ? at.bottom + 8 : Math.max(4, at.top - size.height - 8)}px`;
  tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - size.width - 4))}px`;
}

function hintAt(shot) {
  const {name, facts, scores} = detailsOf(shot);
  const lines = [make("b", {}, name), ...facts.map(fact => make("p", {}, fact)), scoreList(scores)];
  if (shot.dataset.why) lines.splice(1, 0, make("p", {class: "why"}, shot.dataset.why));
  hint(shot, ...lines);
}

// Roving tab index: Tab reaches one image of a group, arrow keys reach the others by position.
function rove(place, shot) {
  for (const other of place.querySelectorAll('.shot[tabindex="0"]')) other.tabIndex = -1;
  if (shot) shot.tabIndex = 0;
}

function arrow(event) {
  const shot = event.target.closest?.(".shot"), place = shot?.closest("[data-rove]");
  const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] ?? [0, 0];
  if (!place || !(dx || dy)) return;
  const middle = element => {
    const box = element.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x, y] = middle(shot);
  let best = null, least = Infinity;
  for (const other of place.querySelectorAll(".shot")) {
    const [u, v] = middle(other), ahead = dx * (u - x) + dy * (v - y), aside = Math.abs(dx ? v - y : u - x);
    const far = ahead + 20 * aside;
    if (ahead > 1 && aside < (dx ? 20 : Infinity) && far < least) [best, least] = [other, far];
  }
  event.preventDefault();
  if (!best) return;
  rove(place, best);
  best.focus();
}

for (const [enter, leave, wanted] of [
  ["pointerover", "pointerout", event => event.pointerType === "mouse"],
  ["focusin", "focusout", event => event.target.matches(":focus-visible")],
]) {
  addEventListener(enter, event => {
    const shot = event.target.closest?.(".shot");
    if (shot && wanted(event) && !shot.closest("dialog")) hintAt(shot);
  });
  addEventListener(leave, event => { if (event.target.closest?.(".shot, .mark")) tip.hidden = true; });
}
addEventListener("scroll", () => { // moving to an image by keyboard scrolls as well
  if (!tip.hidden) document.activeElement.contains(hinted) && document.activeElement.matches(".shot, .mark") ? placeHint() : tip.hidden = true;
}, true);
addEventListener("keydown", arrow);
addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
addEventListener("click", event => {
  const shot = event.target.closest?.(".shot");
  if (shot && !shot.closest("dialog")) open(shot);
});
addEventListener("focusin", event => {
  const shot = event.target.closest?.(".shot"), place = shot?.closest("[data-rove]");
  if (place) rove(place, shot);
});
addEventListener("beforeprint", () => document.querySelectorAll(".shot").forEach(fill));
