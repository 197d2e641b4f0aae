"use strict";
// Names come from users' files, so everything is put into the page as text: nothing here parses HTML.

const ROWS_AT_ONCE = 200;

// ------------------------------------------------------------------------------------------------------- the data

// The data are JSON, deflated: the specifications of thousands of stages differ in little.
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

// Parts that a cell has in common with its own stage stand in the stage alone.
function completed(cell, stages) {
  return { ...Object.fromEntries(data.shared.map((name) => [name, stages.get(cell.key)?.[name]])), ...cell };
}

let data, tasks, stages; // set by main()

// -------------------------------------------------------------------------------------------------------- elements

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function list(lines) {
  return element("ul", null, ...lines.map((line) => element("li", null, line)));
}

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== undefined && value !== null);
  return element("dl", { class: "facts" }, ...shown.flatMap(([name, value]) => [
    element("dt", null, name), element("dd", null, text(value)),
  ]));
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function text(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(+value.toPrecision(6));
  if (Array.isArray(value)) return value.map(text).join(", ");
  if (value !== null && typeof value === "object") return Object.entries(value).map(([key, each]) => `${key} ${text(each)}`).join(", ");
  return String(value);
}

function signed(value) {
  return typeof value === "number" ? (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(2) : text(value);
}

function withUnit(task) {
  const lower = task.better === "lower" ? ", lower is better" : "";
  return `${task.metric}${task.unit ? ` in ${task.unit}` : ""}${lower}`;
}

// Numbers by size and before texts, texts by the alphabet, what is missing last.
function compare(a, b) {
  const rank = (value) => (typeof value === "number" ? 0 : typeof value === "string" ? 1 : 2);
  if (rank(a) !== rank(b)) return rank(a) - rank(b);
  return typeof a === "number" ? a - b : String(a ?? "").localeCompare(String(b ?? ""), undefined, { numeric: true });
}

// A table that is sorted by its heads. A column has `title`, `value(item)` to sort by, and may have `show(item)`, what
// stands in the cell instead, `hint` and `number`. `detail(item)`, where there is one, makes what the first column opens.
function sortableTable(id, items, columns, detail) {
  let shown = [...items];
  let limit = ROWS_AT_ONCE;
  const body = element("tbody");
  const more = element("div", { class: "more" });
  const heads = columns.map((column) => {
    const button = element("button", { type: "button", onclick: () => sort(column) }, column.title);
    return element("th", {
      scope: "col", "aria-sort": "none", title: column.hint || "", class: column.number ? "number" : "",
    }, button);
  });
  let sorted = null;
  let direction = 1;

  function sort(column) {
    direction = sorted === column ? -direction : 1;
    sorted = column;
    heads.forEach((head, i) => {
      const order = direction > 0 ? "ascending" : "descending";
      head.setAttribute("aria-sort", columns[i] === column ? order : "none");
    });
    draw();
  }

  function line(item) {
    const row = element("tr");
    columns.forEach((column, i) => {
      const content = column.show ? column.show(item) : text(column.value(item) ?? "–");
      const cell = element(i ? "td" : "th", i ? { class: column.number ? "number" : "" } : { scope: "row" });
      if (i === 0 && detail) {
        cell.append(element("button", { type: "button", "aria-expanded": "false", onclick: toggle }, content));
      } else cell.append(content);
      row.append(cell);
    });
    function toggle(event) {
      const button = event.currentTarget;
      const expanded = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!expanded));
      if (expanded) row.nextSibling.remove();
      else row.after(element("tr", null, element("td", { class: "detail", colspan: columns.length },
        element("div", null, detail(item)))));
    }
    return row;
  }

  function draw() {
    const ordered = sorted === null ? shown : [...shown].sort((a, b) => {
      const [first, second] = [sorted.value(a), sorted.value(b)];
      // What is missing stays last in both directions.
      const missing = (first ?? null) === null || (second ?? null) === null;
      return (missing ? 1 : direction) * compare(first, second);
    });
    body.replaceChildren(...ordered.slice(0, limit).map(line));
    const hidden = shown.length - limit;
    more.replaceChildren(element("span", { class: "quiet", role: "status" },
      `${Math.min(limit, shown.length)} of ${items.length} shown${shown.length < items.length ? `, ${shown.length} match` : ""}`));
    const extend = (count) => () => { limit = count; draw(); };
    if (hidden > 0) {
      more.append(
        element("button", { type: "button", onclick: extend(limit + ROWS_AT_ONCE) }, `Show ${Math.min(hidden, ROWS_AT_ONCE)} more`),
        element("button", { type: "button", onclick: extend(shown.length) }, `Show all ${shown.length}`),
      );
    }
  }

  draw();
  const table = element("table", { id }, element("thead", null, element("tr", null, ...heads)), body);
  const nodes = [element("div", { class: "scroll" }, table), more];
  const filter = (keep) => { shown = items.filter(keep); limit = ROWS_AT_ONCE; draw(); };
  return { nodes, filter };
}

function textFilter(label, id, changed) {
  const input = element("input", { type: "search", id, oninput: () => changed() });
  const words = () => input.value.toLowerCase().split(/\s+/).filter(Boolean);
  return { node: element("label", null, label, input), matches: (value) => words().every((word) => value.includes(word)) };
}

function choice(label, id, names, changed) {
  const all = element("option", { value: "-1" }, "all");
  const options = names.map((name, i) => element("option", { value: i }, name));
  const select = element("select", { id, onchange: () => changed() }, all, ...options);
  return {
    node: element("label", null, label, select),
    matches: (name) => select.value === "-1" || names[Number(select.value)] === name,
    choose: (name) => { select.value = String(names.indexOf(name)); },
  };
}

// --------------------------------------------------------------------------------------------------------- sections

function warnings() {
  const all = data.warnings;
  if (!all.length) return [element("p", null, "No warnings: all planned numbers are there, and they are of one origin.")];
  return all.map(([line, where]) => where.length
    ? element("details", { class: "warning", ...(where.length > 3 ? {} : { open: "" }) }, element("summary", null, line), list(where))
    : element("div", { class: "warning" }, line));
}

function answer() {
  const reference = data.reference;
  const cells = new Map();
  for (const each of data.differences) {
    if (!cells.has(each.row)) cells.set(each.row, new Map());
    cells.get(each.row).set(each.task, each);
  }
  if (!cells.size) return [element("p", null, `There is no row beside the reference row ${reference}.`)];
  const verdicts = data.verdicts.map(([verdict, rows]) =>
    element("li", null, element("strong", null, `${verdict[0].toUpperCase()}${verdict.slice(1)}: `), rows.join(", ")));
  const columns = [{ title: "row", value: (row) => row }, ...[...tasks.values()].map((task) => {
    const of = (row) => cells.get(row).get(task.name);
    return {
      title: task.name,
      hint: withUnit(task),
      number: true,
      value: (row) => of(row).mean,
      show: (row) => {
        const { mean, pairs, merit, low, high, conditional } = of(row);
        if (mean === null) return "–";
        const interval = low === null ? "" : ` [${signed(low)}, ${signed(high)}]${conditional ? "°" : ""}`;
        const told = low !== null && !conditional && (low > 0 || high < 0);
        const sense = !told ? "" : merit > 0 ? "better" : "worse";
        return element("span", { class: sense, title: sense }, `${signed(mean)}${interval} (n = ${pairs})`);
      },
    };
  })];
  const lower = [...tasks.values()].filter((task) => task.better === "lower").map((task) => task.name);
  return [
    element("p", null, `Compared with the reference row ${reference}:`),
    element("ul", { id: "verdicts" }, ...verdicts),
    ...sortableTable("answer", [...cells.keys()], columns).nodes,
    element("p", { class: "quiet" },
      "Each entry is the mean of paired differences (row minus reference) over the n seeds that both have, in the units of "
      + "the table, with its 95 % t interval; what is coloured has one that excludes 0. ° conditional: a stage, or the choice "
      + "of a search, that only one of the two rows has is the same for several seeds, so its luck is in all their differences "
      + "and not in the interval; such a pair decides nothing."
      + (lower.length ? ` Lower is better on ${lower.join(", ")}.` : "")),
  ];
}

// What papers print for the same cells. A grid of which nothing is published has no such section.
function published() {
  const columns = [
    { title: "cell", value: (each) => `${each.row} on ${each.task}` },
    { title: "verdict", value: (each) => each.kind },
    { title: "ours", value: (each) => each.ours, number: true },
    { title: "published", value: (each) => `${each.published}, ${each.source}`, number: true },
    {
      title: "ours − published", value: (each) => each.mean, number: true,
      show: ({ mean, low, high }) => mean === null ? "–"
        : `${signed(mean)}${low === null ? "" : ` [${signed(low)}, ${signed(high)}]`}`,
    },
    { title: "why, and with which reservation", value: ({ reason, caveat }) => [reason, caveat].filter(Boolean).join("; ") },
  ];
  return [
    element("p", { class: "quiet" },
      "Reproduced: the 90 % interval of ours − published lies within ± the table's margin; different: it lies wholly outside; "
      + "undecided: neither, or there is no interval. Not comparable: a setting differs. A cell opens to the paper and to "
      + "what is noted of its number."),
    ...sortableTable("published", data.published, columns, (each) => list(each.notes)).nodes,
  ];
}

function matrix(drill) {
  const names = data.rows;
  const texts = new Map(data.table.map((line) => [line[0], line.slice(1)]));
  // The text begins with the mean, as in "91.00 ± 1.41 (2/3)", or with a dash where there is none.
  const mean = (row, i) => { const number = parseFloat(texts.get(row)[i]); return Number.isNaN(number) ? null : number; };
  const columns = [{ title: "row", value: (row) => row }, ...[...tasks.values()].map((task, i) => ({
    title: task.name,
    hint: withUnit(task),
    number: true,
    value: (row) => mean(row, i),
    show: (row) => element("button", {
      type: "button", title: "show its cells", onclick: () => drill(row, task.name),
    }, texts.get(row)[i]),
  }))];
  const table = sortableTable("table", names, columns);
  const filter = textFilter("Filter rows", "table-filter", () => table.filter((row) => filter.matches(row.toLowerCase())));
  return [
    element("p", { class: "quiet" },
      "Mean ± sample standard deviation over seeds (n). An entry leads to its cells. ",
      [...tasks.values()].map((task) => `${task.name}: ${withUnit(task)}`).join("; "), "."),
    element("div", { class: "filters" }, filter.node), ...table.nodes,
  ];
}

function cells() {
  const all = data.cells;
  const named = (name) => ({ title: name, value: (cell) => cell[name] });
  const columns = [
    { title: "cell", value: (cell) => cell.cell }, named("row"), named("task"),
    { ...named("seed"), number: true },
    {
      ...named("value"), number: true, hint: "in the units of the table",
      show: (cell) => typeof cell.value === "number" ? cell.value.toFixed(2) : text(cell.value),
    },
    named("metric"),
    { ...named("seconds"), number: true, hint: "of the cell's own stage" },
  ];
  const table = sortableTable("cells", all, columns, cellDetail);
  const changed = () => table.filter((cell) => row.matches(cell.row) && task.matches(cell.task)
    && words.matches(String(cell.cell).toLowerCase()));
  const words = textFilter("Filter", "cells-filter", changed);
  const row = choice("Row", "cells-row", data.rows, changed);
  const task = choice("Task", "cells-task", [...tasks.keys()], changed);
  const heading = element("h2", { tabindex: "-1" }, "Cells");
  const drill = (rowName, taskName) => {
    row.choose(rowName);
    task.choose(taskName);
    changed();
    heading.scrollIntoView();
    heading.focus({ preventScroll: true });
  };
  const nodes = [
    heading, element("p", { class: "quiet" }, "A cell opens to its metrics, what each part of the method did, and the stages behind it."),
    element("div", { class: "filters" }, words.node, row.node, task.node), ...table.nodes,
  ];
  return { nodes, drill };
}

function cellDetail(cell) {
  const entries = (name) => Object.entries(cell[name] || {});
  const others = data.cells.filter((each) => each.row === cell.row && each.task === cell.task);
  const seeds = facts(others.map((each) => [`seed ${each.seed}`, each.value]));
  const block = (title, ...nodes) => element("div", null, element("h3", null, title), ...nodes);
  const did = entries("activity").map(([part, fact]) => [
    part, `${text(fact.value)}: ${fact.meaning}${fact.nil ? " – it did nothing" : ""}`,
  ]);
  const keys = cell.stages || [];
  return element("div", null,
    element("div", { class: "columns" },
      block("Metrics", facts(entries("metrics"))),
      block("Measured", facts([...entries("measured"), ["seconds with parents", cell.seconds_with_parents]])),
      block("Seeds of this row and task", others.length <= 10 ? seeds
        : element("details", null, element("summary", null, `${others.length} seeds`), seeds)),
    ),
    did.length ? block("What each part did", facts(did)) : null,
    cell.also ? block("Other numbers of the same cell", element("pre", null, JSON.stringify(cell.also, null, 1))) : null,
    cell.search ? block("Search", element("pre", null, JSON.stringify(cell.search, null, 1))) : null,
    block("Stages, the cell's own last", ...(keys.length ? keys.map(stageDetail) : [
      element("p", { class: "quiet" }, "The records name no stages: an older version wrote them."),
    ])),
    cell.spec ? block("Specification", element("pre", null, JSON.stringify(cell.spec, null, 1))) : null,
    block("Provenance of the cell", facts([
      ["key", cell.key], ...entries("provenance"), ["devices", cell.devices], ["code", cell.code],
      ["weights computed anew since", cell.other_weights?.length ? cell.other_weights : null],
    ])),
  );
}

function stageDetail(key) {
  const stage = stages.get(key);
  if (!stage) return element("p", { class: "quiet" }, `${key}: not in stages.jsonl`);
  const title = `${stage.name} on ${stage.task}, seed ${stage.seed ?? "–"} (${key})`;
  const details = element("details", { class: "stage" }, element("summary", null, title));
  // Made when it is opened first: a cell may have a dozen stages with long specifications.
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const shown = ["steps", "parameters", "seconds", "attempt", "date", "weights"].map((name) => [name, stage[name]]);
    details.append(
      facts([...shown, ...["metrics", "measured", "provenance"].flatMap((name) => Object.entries(stage[name] || {}))]),
      ...fromStore(key),
      element("h3", null, "Specification"), element("pre", null, JSON.stringify(stage.spec, null, 1)),
    );
  });
  return details;
}

function fromStore(key) {
  if (!data.store) {
    return [element("p", { class: "quiet" }, "No learning curve and no log: this report was made without a store (--gin FILE).")];
  }
  const stored = Object.hasOwn(data.store, key) ? data.store[key] : null;
  const points = (stored?.curve || []).filter(([, loss]) => typeof loss === "number");
  const log = stored?.log;
  return [
    element("h3", null, "Learning curve"),
    points.length > 1 ? curve(points) : element("p", { class: "quiet" }, "The store has none."),
    element("h3", null, "End of the log"),
    log ? element("pre", { class: "log" }, log) : element("p", { class: "quiet" }, "The store has none."),
  ];
}

// The training loss over steps. Example: of 0..100 steps, step 50 stands in the middle of the 400 units between the
// left edge at 60 and the right one at 460; losses run from 15 (the greatest) down to 155 (the least).
function curve(points) {
  const svg = (name, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const steps = points.map(([step]) => step);
  const losses = points.map(([, loss]) => loss);
  const [first, last, least, greatest] = [Math.min(...steps), Math.max(...steps), Math.min(...losses), Math.max(...losses)];
  const x = (step) => 60 + (400 * (step - first)) / (last - first || 1);
  const y = (loss) => 155 - (140 * (loss - least)) / (greatest - least || 1);
  const line = points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  const label = `training loss from ${text(losses[0])} at step ${first} to ${text(losses.at(-1))} at step ${last}`;
  return svg("svg", { viewBox: "0 0 480 190", width: 480, height: 190, role: "img", "aria-label": label },
    svg("path", { d: "M60 15V155H460", fill: "none", stroke: "currentColor", "stroke-opacity": 0.35 }),
    svg("polyline", { points: line, fill: "none", stroke: "currentColor", "stroke-width": 1.6 }),
    svg("text", { x: 54, y: 19, "text-anchor": "end" }, text(greatest)),
    svg("text", { x: 54, y: 155, "text-anchor": "end" }, text(least)),
    svg("text", { x: 60, y: 172 }, String(first)),
    svg("text", { x: 460, y: 172, "text-anchor": "end" }, `step ${last}`),
    svg("text", { x: 260, y: 186, "text-anchor": "middle" }, "training loss"),
  );
}

// Images run no script, whatever names stand in them.
function figures() {
  const note = "python -m bench.figures writes them as SVG, PNG and PDF, with their numbers as CSV.";
  return [element("p", { class: "quiet" }, note), ...data.figures.map((figure) =>
    element("img", { class: "figure", alt: figure.text, src: `data:image/svg+xml,${encodeURIComponent(figure.svg)}` }))];
}

function provenance() {
  return data.provenance.map(([what, values]) => {
    const lines = values.map(([value, count]) => `${value} (${count} stage${count === 1 ? "" : "s"})`);
    return [what, lines.length > 8 ? `${lines.slice(0, 8).join("; ")}; and ${lines.length - 8} more` : lines.join("; ")];
  });
}

// --------------------------------------------------------------------------------------------------------- the page

async function main() {
  data = await unpack(document.getElementById("data").textContent);
  tasks = new Map(data.tasks.map((task) => [task.name, task])); // a Map, as a task may be named "constructor"
  stages = new Map(Object.entries(data.stages));
  data.cells = data.cells.map((cell) => completed(cell, stages));
  const section = (title, nodes) => element("section", null, element("h2", null, title), ...nodes);
  const table = cells();
  const seeds = data.seeds;
  const some = seeds.length <= 20 ? seeds.join(", ") : `${seeds.slice(0, 3).join(", ")}, …, ${seeds.at(-1)} (${seeds.length})`;
  document.getElementById("facts").textContent =
    `${counted(data.rows.length, "row")}, ${counted(tasks.size, "task")}, seeds ${some}; `
    + `${counted(data.cells.length, "number")}.`
    + (data.store ? "" : " Made from records alone, without a store: no learning curves and no logs.");
  document.getElementById("report").append(
    section("Answer", answer()),
    section("Warnings", warnings()),
    ...(data.published.length ? [section("Published numbers", published())] : []),
    section("Rows and tasks", matrix(table.drill)),
    ...(data.figures.length ? [section("Figures", figures())] : []),
    element("section", null, ...table.nodes),
    section("Provenance", [facts(provenance())]),
    section("How to read the numbers", [list(data.legend)]),
  );
}

// On paper nothing can be opened.
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details.warning").forEach((details) => { details.open = true; });
});

main();
