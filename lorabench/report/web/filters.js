// The bar that stays visible: filters of rows and pairs, and the selection of one image per cell.

function filter(title, name, options) {
  const count = make("span", {class: "count"}), list = make("div", {class: "options"});
  const boxes = options.map(([value, text, faint]) => {
    const box = make("input", {type: "checkbox", onchange: () => set(value, box.checked)});
    const only = make("button", {type: "button", class: "only", onclick: () =>
      choose({[name]: options.map(([other]) => other).filter(other => other !== value)})}, "only");
    only.setAttribute("aria-label", `only ${text}`);
    list.append(make("div", {class: faint ? "option frame" : "option"}, make("label", {}, box, text), only));
    return [value, box];
  });
  const set = (value, on) => choose({[name]: on ? state[name].filter(each => each !== value) : [...state[name], value]});
  const all = make("button", {type: "button", onclick: () => choose({[name]: []})}, "all");
  const none = make("button", {type: "button", onclick: () => choose({[name]: options.map(([value]) => value)})}, "none");
  const details = make("details", {class: "filter", "data-filter": name},
    make("summary", {}, title, count), make("div", {class: "panel"}, make("div", {class: "ends"}, all, none), list));
  part([name], () => {
    for (const [value, box] of boxes) box.checked = !state[name].includes(value);
    const shown = options.filter(([value]) => !state[name].includes(value)).length;
    count.textContent = shown === options.length ? String(shown) : `${shown} of ${options.length}`;
    details.classList.toggle("active", shown < options.length);
  });
  return details;
}

// Select the image of each row and pair, directly or step by step.
function imageSwitch() {
  const places = data.seeds.flatMap(seed => indices.map(index => ({seed, image: String(index)})));
  const step = by => {
    const at = places.findIndex(place => place.seed === state.seed && place.image === state.image);
    choose(places[(at + by + places.length) % places.length]);
  };
  const group = make("div", {class: "switch", role: "group", "aria-label": "image shown in every cell"});
  group.append(make("button", {type: "button", "aria-label": "previous image", onclick: () => step(-1)}, "‹"));
  if (data.seeds.length > 1) group.append(picker("seed", "seed", data.seeds.map(seed => [seed, seed])));
  group.append(picker("image", "image", indices.map(index => [index, index])));
  group.append(make("button", {type: "button", "aria-label": "next image", onclick: () => step(1)}, "›"));
  return group;
}

const bar = byId("bar");
bar.append(filter("Rows", "row", data.rows.map(row => [row.label, plain(row.label), row.frame])));
if (contents.length > 1) bar.append(filter("Contents", "content", contents.map(name => [name, name])));
if (styles.length > 1) bar.append(filter("Styles", "style", styles.map(name => [name, name])));
bar.append(imageSwitch());

const reset = make("button", {type: "button", class: "reset", onclick: () => choose({row: [], content: [], style: []})}, "show all");
bar.append(reset);
part(FILTERS, () => { reset.hidden = !FILTERS.some(name => state[name].length); });

// Sections that the template wrote for each run and pair follow the filters.
part(FILTERS, () => {
  for (const element of document.querySelectorAll("[data-label]")) element.hidden = state.row.includes(element.dataset.label);
  const hidden = new Set(data.pairs.filter(pair => !pairShown(pair)).map(pair => `${pair.content}+${pair.style}`));
  for (const element of document.querySelectorAll("[data-pair-name]")) element.hidden = hidden.has(element.dataset.pairName);
});

// Close an open filter on a click elsewhere or on Escape, and keep at most one open.
addEventListener("pointerdown", event => {
  for (const each of bar.querySelectorAll("details[open]")) if (!each.contains(event.target)) each.open = false;
});
addEventListener("keydown", event => {
  const opened = event.key === "Escape" && event.target.closest?.("#bar details[open]");
  if (opened) { opened.open = false; opened.firstElementChild.focus(); }
});
bar.addEventListener("toggle", event => {
  if (event.target.open) for (const each of bar.querySelectorAll("details[open]")) each.open = each === event.target;
}, true);
