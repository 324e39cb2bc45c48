// Selected image of each pair and table row, and below it all images of each pair on demand.

const matrix = byId("matrix-images");
const SPREAD = data.rows.length + 2 > data.pairs.length ? "pairs" : "rows"; // default for the columns
const across = () => state.turn || SPREAD;
const broken = name => name.split("+").flatMap((part, i, all) => i < all.length - 1 ? [part + "+", make("wbr")] : [part]);

byId("turn").append(picker("columns", "turn", [["", `auto (${SPREAD === "pairs" ? "pairs" : "methods"})`], ["pairs", "pairs"], ["rows", "methods"]]));

function pairHeading(pair, attributes) {
  return make("th", attributes, ...broken(pair.content), make("span", {}, "in ", ...broken(pair.style)));
}

// References first, then the rows in the order of the report; the oracle is last.
function lanes() {
  const references = ["content", "style"].filter(role => data.pairs.some(pair => pair.references[role].length))
    .map(role => ({name: `${role} reference`, frame: true, cell: pair => pair.references[role].length ? referenceOf(pair, role, 0) : null}));
  return [...references, ...rowsShown().map(row => ({name: plain(row.label), frame: row.frame, row, cell: pair => slot(row, pair)}))];
}

// Cell of a row and pair; `show` puts the selected image into it.
function slot(row, pair) {
  const place = make("div", {class: "slot"});
  place.show = () => {
    const id = imageAt(row, pair), shot = place.firstElementChild;
    if (id === undefined) clear(place);
    else shot ? point(shot, id) : place.append(shotOf(id));
  };
  place.show();
  return place;
}

function drawMatrix() {
  clear(matrix);
  const all = lanes(), pairs = pairsShown();
  const corner = make("td"), group = lane => lane.frame ? "frame" : false;
  const table = make("table", {class: "matrix"});
  if (across() === "rows") {
    table.append(make("thead", {}, make("tr", {}, corner, ...all.map(lane => make("th", {scope: "col", class: group(lane)}, lane.name)))),
      make("tbody", {}, ...pairs.map(pair => make("tr", {}, pairHeading(pair, {scope: "row"}), ...all.map(lane => make("td", {}, lane.cell(pair)))))));
  } else {
    table.append(make("thead", {}, make("tr", {}, corner, ...pairs.map(pair => pairHeading(pair, {scope: "col"})))),
      make("tbody", {}, ...all.map(lane => make("tr", {class: group(lane)}, make("th", {scope: "row"}, lane.name), ...pairs.map(pair => make("td", {}, lane.cell(pair)))))));
  }
  matrix.append(pairs.length ? table : make("p", {class: "none"}, "No pair is selected."));
  rove(matrix, matrix.querySelector(".shot"));
}

part(["turn", ...FILTERS], drawMatrix);
part(["seed", "image"], () => {
  for (const place of matrix.querySelectorAll(".slot")) place.show();
  if (!matrix.querySelector('.shot[tabindex="0"]')) rove(matrix, matrix.querySelector(".shot"));
});

// All images: those of a pair are created when its section is opened and removed when it is closed.
const strips = byId("strips");
const byPair = groupBy(data.images.keys(), id => data.images[id].pair);

for (const [number, pair] of data.pairs.entries()) {
  const place = make("div", {class: "strips", "data-rove": true});
  const details = make("details", {ontoggle: () => details.open ? drawStrips(place, pair, number) : clear(place)},
    make("summary", {}, pair.content, make("span", {}, " in "), pair.style), place);
  part(FILTERS, () => {
    details.hidden = !pairShown(pair);
    if (details.open) drawStrips(place, pair, number);
  });
  strips.append(details);
}

function drawStrips(place, pair, number) {
  clear(place);
  place.append(...pair.prompts.map(prompt => make("p", {class: "prompt"}, prompt)));
  const strip = (name, frame, shots) => shots.length &&
    place.append(make("h4", {class: frame ? "frame" : false}, name), make("div", {class: "strip"}, ...shots));
  for (const role of ["content", "style"]) {
    const shown = pair.references[role].map((_, i) => referenceOf(pair, role, i));
    strip(`${role} reference${shown.length > 1 ? "s" : ""}`, true, shown);
  }
  const ids = byPair.get(number) ?? [];
  for (const row of rowsShown()) {
    strip(plain(row.label), row.frame, ids.filter(id => data.rows[data.images[id].row] === row).map(id => shotOf(id)));
  }
  rove(place, place.querySelector(".shot"));
}
