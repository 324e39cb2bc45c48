// One image large, beside what it was made from, and from there to the next as they lie in the part of the page.

const view = byId("view");
let current = null; // the shot that is shown

function open(shot) {
  const {name, facts, scores, file, picture, pair, image, noise} = told(shot);
  current = shot;
  tip.hidden = true;
  const large = byId("large"), compare = byId("compare");
  large.src = source(picture);
  large.alt = name;
  byId("title").textContent = name;
  byId("facts").replaceChildren(...(shot.dataset.why ? [make("p", {class: "why"}, shot.dataset.why)] : []),
    ...facts.map(fact => make("p", {}, fact)));
  if (noise) byId("facts").append(make("p", {class: "noise"}, `noise ${noise}`));
  if (file) byId("facts").append(make("p", {}, make("a", {href: file}, "open the file")));
  byId("scores-of-image").replaceChildren(...scoreList(scores).children);
  const beside = ["content", "style"].filter(role => pair.references[role].length)
    .map(role => [`${role} reference`, pair.references[role][0]]);
  const truth = image && data.rows.findIndex(row => row.label === "oracle");
  const oracle = image && truth >= 0 && truth !== image.row && imageAt(data.rows[truth], pair, image.seed, image.index);
  if (oracle) beside.push(["oracle", data.images[oracle].picture]);
  compare.replaceChildren(...beside.map(([caption, number]) =>
    make("figure", {}, make("img", {src: source(number), alt: caption}), make("figcaption", {}, caption))));
  const all = around();
  byId("count").textContent = all.length > 1 ? `${all.indexOf(shot) + 1} of ${all.length}` : "";
  if (!view.open) view.showModal();
  view.scrollTop = 0;
  byId("title").focus({preventScroll: true});
  if (shot.dataset.image !== undefined && shot.closest("[data-rove]")?.id === "matrix-images") choose({open: shot.dataset.image});
}

const around = () => [...(current.closest("[data-rove]") ?? document).querySelectorAll(".shot")];

function step(by) {
  const all = around(), at = all.indexOf(current);
  if (all.length > 1) open(all[(at + by + all.length) % all.length]);
}

view.addEventListener("keydown", event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (by) { event.preventDefault(); step(by); }
});
view.addEventListener("click", event => {
  if (event.target === view) view.close();
  const by = event.target.dataset?.step;
  if (by !== undefined) +by ? step(+by) : view.close();
});
view.addEventListener("close", () => {
  choose({open: ""});
  if (!current.isConnected) return;
  const place = current.closest("[data-rove]");
  if (place) rove(place, current);
  current.focus();
});
