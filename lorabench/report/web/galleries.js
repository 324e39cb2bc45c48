// Images worth inspecting, each with the reason.

const APART = 12; // images shown per kind of disagreement

function card(id, why, caption) {
  return make("figure", {class: "card"}, shotOf(id, why), make("figcaption", {}, ...caption));
}

function drawGallery(place, groups, lacking) {
  clear(place);
  for (const [title, cases, total] of groups) {
    const count = total > cases.length ? `${cases.length} of ${total}` : "";
    const heading = make("h3", {}, title, count ? make("small", {}, count) : "");
    place.append(make("div", {class: "group"}, heading, make("div", {class: "cards"}, ...cases)));
  }
  if (!groups.length) place.append(make("p", {class: "none"}, lacking));
  rove(place, place.querySelector(".shot"));
}

const pairLabel = image => make("b", {}, pairName(data.pairs[image.pair]));
const shownCases = cases => cases.filter(({image}) => imageShown(data.images[image]));

byId("worst-choices").append(picker("images per method", "worst", ["4", "8", "16"].map(count => [count, count])));
part(["worst", ...FILTERS], () => {
  const byRow = groupBy(shownCases(data.worst), ({image}) => data.images[image].row);
  const groups = data.rows.map((row, number) => [plain(row.label), byRow.get(number) ?? []]).filter(([, cases]) => cases.length);
  drawGallery(byId("worst-images"), groups.map(([name, cases]) =>
    [name, cases.slice(0, +state.worst).map(({image, why}) => card(image, why, [pairLabel(data.images[image]), why])), 0]),
  "No image has both a content and a style score, or all have the same scores.");
});

part(FILTERS, () => {
  const byKind = groupBy(shownCases(data.disagreements), ({kind}) => kind);
  drawGallery(byId("apart-images"), [...byKind].map(([kind, cases]) => [kind, cases.slice(0, APART).map(({image, why}) => {
    const at = data.images[image];
    return card(image, why, [make("b", {}, `${plain(data.rows[at.row].label)}, ${pairName(data.pairs[at.pair])}`), why]);
  }), cases.length]), "None of the images shown.");
});
