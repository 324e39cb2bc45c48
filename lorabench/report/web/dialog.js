// Dialog with one enlarged image, its references and facts; it steps through the images of the same section.

const view = byId("view");
let current = null; // the image button whose image is open

function open(shot) {
  const {name, facts, scores, file, picture, pair, image, noise} = detailsOf(shot);
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
  const compared = ["content", "style"].filter(role => pair.references[role].length)
    .map(role => [`${role} reference`, pair.references[role][0]]);
  const row = image && data.rows.findIndex(row => row.label === "oracle");
  const oracle = image && row >= 0 && row !== image.row && imageAt(data.rows[row], pair, image.seed, image.index);
  if (oracle) compared.push(["oracle", data.images[oracle].picture]);
  compare.replaceChildren(...compared.map(([caption, number]) =>
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
