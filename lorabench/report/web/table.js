// The table of scores, sortable by every column; it shows scores, differences to the reference, ranks or costs.

const scoresTable = byId("scores-table"), heading = scoresTable.tHead.rows[0], body = scoresTable.tBodies[0];
const SHOWS = ["scores", "differences", "ranks", "costs"];
const some = key => data.rows.some(row => Object.values(row.scores).some(line => (line[key] ?? null) !== null));
const has = {
  scores: () => true,
  differences: () => some("difference"),
  ranks: () => some("rank"),
  costs: () => data.costs.length > 0,
};
const columnsShown = () => state.show === "costs" ? data.costs : data.columns;

byId("show").append(...SHOWS.filter(name => has[name]()).map(name => {
  const radio = make("input", {type: "radio", name: "show", value: name, onchange: () => {
    const turned = state.sort && (name === "ranks") !== (state.show === "ranks") && state.sort !== "method";
    choose({show: name, down: turned ? (state.down ? "" : "1") : state.down});
  }});
  part(["show"], () => { radio.checked = state.show === name; });
  return make("label", {}, radio, make("span", {}, name));
}));

// Return the value of a row in a column as shown now, or null.
function valueOf(row, name) {
  if (name === "method") return null;
  if (data.costs.some(cost => cost.name === name)) return row.costs[name]?.value ?? null;
  const line = lineOf(row, name);
  if (state.show === "differences") return deltaOf(row, name)?.difference ?? null;
  if (state.show === "ranks") return rankOf(row, name)?.rank ?? null;
  return line?.mean ?? null;
}

function deltaOf(row, name) {
  if (!isPart()) return row.scores[name]?.difference === null ? undefined : row.scores[name];
  const reference = data.rows.find(other => other.label === data.reference);
  const shown = each => Object.keys(each?.pairs[name] ?? {}).filter(pair => pairShown(data.pairs[pair])).join();
  const [own, other] = [lineOf(row, name), reference && lineOf(reference, name)];
  const same = own && other && !row.frame && row !== reference && shown(row) === shown(reference);
  return same ? {difference: own.mean - other.mean} : undefined;
}

function rankOf(row, name) {
  if (!isPart()) return row.scores[name]?.rank === null ? undefined : row.scores[name];
  const own = lineOf(row, name);
  if (row.frame || !own) return undefined;
  return {rank: 1 + data.rows.filter(other => !other.frame && lineOf(other, name)?.mean > own.mean).length};
}

function sorted() {
  const rows = rowsShown(), sign = state.down ? -1 : 1;
  if (!state.sort) return rows;
  if (state.sort === "method") return rows.sort((a, b) => sign * a.label.localeCompare(b.label, "en"));
  return rows.map(row => [valueOf(row, state.sort), row])
    .sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * (a - b))
    .map(([, row]) => row);
}

// Cycle through best first, worst first and the order of the report.
function sortBy(name) {
  const first = ["ranks", "costs"].includes(state.show) || name === "method" ? "" : "1";
  if (state.sort !== name) choose({sort: name, down: first});
  else if (state.down === first) choose({down: first ? "" : "1"});
  else choose({sort: "", down: defaults.down});
}

function sortButton(name, title, small) {
  const button = make("button", {type: "button", onclick: () => sortBy(name)}, make("span", {}, title));
  if (small) button.append(make("small", {}, small));
  const cell = make("th", {scope: "col", "data-column": name}, button);
  return cell;
}

function drawHeading() {
  heading.className = state.show;
  heading.replaceChildren(sortButton("method", "method"),
    ...columnsShown().map(column => sortButton(column.name, column.short, column.backbone)));
}

const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const span = (low, high, text) => low === null || low === undefined ? "" : `${text(low)} to ${text(high)}`;

// A dot with its interval on the range of the column, optionally with a mark at zero.
function whisker(range, at, low, high, zero = false) {
  const place = value => `${(100 * (value - range[0]) / (range[1] - range[0] || 1)).toFixed(2)}%`;
  const element = make("span", {class: "whisker", "aria-hidden": "true"});
  const dot = make("b"), bar = make("i"), none = make("u");
  if (zero) { none.style.left = place(0); element.append(none); }
  if (low !== null && low !== undefined) {
    bar.style.left = place(low);
    bar.style.width = `${(100 * (high - low) / (range[1] - range[0] || 1)).toFixed(2)}%`;
    element.append(bar);
  }
  dot.style.left = place(at);
  element.append(dot);
  return element;
}

// Return the range of a column over all visible rows, so that whiskers in a column are comparable.
const reaches = new Map(); // cleared whenever the table is redrawn

function reach(name, keys, of, start) {
  if (!reaches.has(name)) reaches.set(name, extent(name, keys, of, start));
  return reaches.get(name);
}

function extent(name, keys, of, start = []) {
  const values = [...start, ...rowsShown().flatMap(row => keys.map(key => of(row, name)?.[key]))]
    .filter(value => value !== null && value !== undefined);
  return [Math.min(...values), Math.max(...values)];
}

const CELLS = {
  scores(row, {name, digits}) {
    const line = lineOf(row, name), fixed = value => value.toFixed(digits);
    if (!line) return [];
    const mark = line.separated === false
      ? [make("abbr", {title: `not separated from ${data.reference}`}, "~")] : [];
    return [fixed(line.mean), ...mark, whisker(reach(name, ["mean", "low", "high"], lineOf), line.mean, line.low, line.high),
      make("small", {}, span(line.low, line.high, fixed))];
  },
  differences(row, {name, digits}) {
    const line = deltaOf(row, name), text = value => signed(value, digits);
    if (line?.difference === null || line?.difference === undefined) {
      return row.label === data.reference ? [make("span", {class: "none"}, "reference")] : [];
    }
    const keys = ["difference", "difference_low", "difference_high"];
    const p = line.p_holm ?? null; // Holm-corrected over the methods of the column
    const cell = [text(line.difference),
      whisker(reach(name, keys, deltaOf, [0]), line.difference, line.difference_low, line.difference_high, true),
      make("small", {}, span(line.difference_low, line.difference_high, text))];
    if (p !== null) cell.push(make("small", {}, p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`));
    if (line.separated === false) cell.push(make("small", {class: "unseparated"}, "not separated"));
    return cell;
  },
  ranks(row, {name}) {
    const line = rankOf(row, name);
    if (!line?.rank) return [];
    return [make("span", {class: "rank"}, String(line.rank)),
      whisker([1, data.rows.filter(other => !other.frame).length], line.rank, line.rank_low, line.rank_high),
      make("small", {}, span(line.rank_low, line.rank_high, String))];
  },
  costs: (row, {name}) => [row.costs[name]?.text ?? ""],
};

function nameOf(row) {
  const name = row.run === null ? plain(row.label) : make("a", {href: `#run-${row.run}`, title: "how it was made"}, plain(row.label));
  return make("th", {scope: "row"}, name);
}

function drawBody() {
  reaches.clear();
  const columns = columnsShown();
  const rows = sorted().filter(row => state.show === "scores" || (state.show === "costs" ? Object.keys(row.costs).length : !row.frame));
  body.replaceChildren(...rows.flatMap(row => {
    const own = make("tr", {class: row.frame ? "frame" : false, "data-row": row.label}, nameOf(row),
      ...columns.map(column => make("td", {}, ...CELLS[state.show](row, column))));
    if (state.show !== "scores") return [own];
    return [own, ...row.reported.map(each => make("tr", {class: "reported", "data-of": row.label},
      make("th", {scope: "row", title: each.standing}, `${data.mark} ${each.text}`),
      ...columns.map(column => make("td", {}, each.values[column.name] ?? ""))))];
  }));
  for (const cell of heading.cells) {
    const on = cell.dataset.column === state.sort;
    on ? cell.setAttribute("aria-sort", state.down ? "descending" : "ascending") : cell.removeAttribute("aria-sort");
  }
  const by = [...data.columns, ...data.costs].find(column => column.name === state.sort)?.short ?? state.sort;
  const status = state.show === "differences" ? [`Differences to ${plain(data.reference)}, paired by pair, prompt and seed.`] : [];
  if (by) status.push(`Sorted by ${by}, ${state.down ? "descending" : "ascending"}.`);
  const kept = pairsShown().length;
  if (isPart() && state.show !== "costs") {
    status.push(`Means over ${kept} of ${data.pairs.length} pairs. Intervals exist only for all pairs.`);
  }
  byId("table-status").textContent = status.join(" ");
}

part(["show"], drawHeading);
part(["show", "sort", "down", ...FILTERS], drawBody);
