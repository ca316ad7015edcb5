"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const { run, speed, thumbnails } = content;
const classes = new Map(content.classes.map((one) => [one.class, one]));
const svgNamespace = document.getElementById("svg").namespaceURI;

// chosen: undefined for all; null is the class of photographs that are known to show none.
const state = { chosen: undefined, sort: "confidence", ascending: true, alone: false, enlarged: null };

const QUANTITIES = [
  { key: "score", title: "Score of the known classes", axis: "probability that the classifier gives the class" },
  { key: "share", title: "Area of the known classes", axis: "share of the photograph that is labelled as the class" },
  { key: "confidence", title: "Confidence of the labels", axis: "mean probability of a photograph's labels" },
];

function byId(id) {
  return document.getElementById(id);
}

// Strings become text, whatever they hold.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text = "") {
  const made = document.createElementNS(svgNamespace, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function number(value) {
  return value.toLocaleString("en");
}

function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

function significant(value) {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

function percent(share) {
  return share > 0 && share < 0.01 ? "<1 %" : `${Math.round(100 * share)} %`;
}

function probability(value) {
  return value === null ? "–" : value.toFixed(2);
}

function seconds(value) {
  return `${significant(value)} s`;
}

// ---- Classes, as they are told everywhere.

function chip(one) {
  if (one.class === null) return element("span", { className: "chip none" }, "–");
  const made = element("span", { className: "chip" }, String(one.value));
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(one.colour.slice(at, at + 2), 16));
  made.style.background = one.colour;
  made.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 118 ? "#000" : "#fff";
  return made;
}

function className(one) {
  return one.class === null ? "no class" : one.name;
}

function isLow(score) {
  return score < content.disagrees_below;
}

function classLine(number, score, share) {
  const one = classes.get(number);
  return element(
    "span",
    { className: "class" },
    chip(one),
    element("span", { className: "text" }, one.name),
    element("span", { className: isLow(score) ? "score low" : "score" }, `${isLow(score) ? "low " : ""}${probability(score)} · ${percent(share)}`),
  );
}

// ---- The head.

function showFigures() {
  byId("photographs").textContent = counted(run.photographs, "photograph");
  byId("low").textContent = content.disagrees_below;
  byId("unfinished").hidden = run.unfinished === 0;
  byId("unfinished").textContent =
    `This run is not finished: ${counted(run.unfinished, "photograph has", "photographs have")} neither labels nor an error yet. ` +
    "Everything below is of the others.";
  const figures = [
    ["photographs", number(run.photographs)],
    ["labelled", number(run.labeled)],
    ["failed", number(run.failed)],
    ["unfinished", number(run.unfinished)],
  ];
  if (speed !== null) {
    const slowest = speed.stages.reduce((one, other) => (other.share > one.share ? other : one), { share: -1 });
    if (speed.photographs_a_second !== null) {
      figures.push(["images a second", significant(speed.photographs_a_second), "by the summed seconds of all stages"]);
    }
    figures.push(["median time", seconds(speed.median), "a photograph, all stages"]);
    if (slowest.share > 0) {
      figures.push(["slowest stage", slowest.name, `${percent(slowest.share)} of the seconds, median ${seconds(slowest.median)}`]);
    }
  }
  byId("figures").append(
    ...figures.map(([name, value, more]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value, ...(more ? [element("small", {}, more)] : []))),
    ),
  );
  byId("footer").textContent = `Written by dcsm_attr ${run.version}. This file is complete: it loads nothing.`;
}

// ---- The classes, which are the filter.

function showClasses() {
  for (const one of content.classes) {
    const button = element("button", { type: "button" }, chip(one), element("span", { className: "text" }, className(one)));
    const { share, score } = one.histograms;
    const row = element(
      "tr",
      {},
      element("td", {}, button),
      element("td", {}, number(one.images)),
      element("td", {}, share.mean === null ? "–" : percent(share.mean)),
      element("td", {}, probability(score.mean)),
    );
    row.dataset.class = one.class;
    row.addEventListener("click", () => choose(state.chosen === one.class ? undefined : one.class));
    byId("class-rows").append(row);
  }
  const absent = run.class_count - content.classes.filter((one) => one.class !== null).length;
  byId("absent").textContent = absent > 0 ? `${counted(absent, "more class occurs", "more classes occur")} in no photograph.` : "";
}

function choose(number) {
  state.chosen = number;
  for (const row of byId("class-rows").rows) {
    const chosen = number !== undefined && row.dataset.class === String(number);
    row.classList.toggle("chosen", chosen);
    row.querySelector("button").setAttribute("aria-pressed", chosen);
  }
  const everything = byId("all-classes");
  everything.hidden = number === undefined;
  everything.textContent = number === undefined ? "" : `only ${className(classes.get(number))} ✕`;
  everything.setAttribute("aria-label", "show all classes");
  showHistograms();
  showDisagreements();
  showThumbnails();
}

// ---- Histograms.

function histogram(counts, axis) {
  const [width, left, right, top, height] = [340, 20, 12, 18, 92];
  const step = (width - left - right) / counts.length;
  const most = Math.max(...counts, 1);
  const told = counts.map((count, at) => `${(at / counts.length).toFixed(1)} to ${((at + 1) / counts.length).toFixed(1)}: ${number(count)}`);
  const chart = drawn("svg", { viewBox: `0 0 ${width} ${top + height + 36}`, role: "img", "aria-label": `${axis}. ${told.join("; ")}` });
  counts.forEach((count, at) => {
    const tall = count ? Math.max((height * count) / most, 1) : 0;
    const bar = drawn("rect", { x: left + at * step + 1, y: top + height - tall, width: step - 2, height: tall });
    bar.append(drawn("title", {}, told[at]));
    chart.append(bar);
    const label = count < 10000 ? String(count) : `${Math.round(count / 1000)}k`;
    chart.append(drawn("text", { x: left + (at + 0.5) * step, y: top + height - tall - 4 }, label));
  });
  chart.append(drawn("line", { x1: left, x2: width - right, y1: top + height + 0.5, y2: top + height + 0.5 }));
  for (let tick = 0; tick <= counts.length; tick += 2) {
    const x = left + tick * step;
    chart.append(drawn("line", { x1: x, x2: x, y1: top + height, y2: top + height + 4 }));
    chart.append(drawn("text", { x, y: top + height + 16, class: "axis" }, (tick / counts.length).toFixed(1)));
  }
  chart.append(drawn("text", { x: (left + width - right) / 2, y: top + height + 32, class: "axis" }, axis));
  const middle = top + height / 2;
  chart.append(drawn("text", { x: 10, y: middle, transform: `rotate(-90 10 ${middle})`, class: "axis" }, "count"));
  return chart;
}

function charted(name, found, quantity) {
  const told = `${counted(found.count, "value")} · mean ${probability(found.mean)}`;
  return [element("p", {}, element("strong", {}, name), ` · ${told}`), histogram(found.counts, quantity.axis)];
}

function showHistograms() {
  const chosen = classes.get(state.chosen);
  byId("charts").replaceChildren(
    ...QUANTITIES.map((quantity) => {
      const figure = element("figure", {}, element("figcaption", {}, quantity.title));
      figure.append(...charted("all classes", content.histograms[quantity.key], quantity));
      if (state.chosen !== undefined) figure.append(...charted(className(chosen), chosen.histograms[quantity.key], quantity));
      return figure;
    }),
  );
}

// ---- Disagreements and failures.

function showDisagreements() {
  const all = content.disagreements;
  const shown = all.filter((one) => state.chosen === undefined || one.class === state.chosen);
  const places = new Map(thumbnails.map((row) => [row.name, row]));
  const listed = content.disagreeing > all.length ? `; the lowest ${number(all.length)} are listed` : ", the lowest first";
  const chosen = state.chosen === undefined ? "" : ` Of the chosen class: ${number(shown.length)} of those listed.`;
  byId("disagreements-told").textContent = all.length
    ? `${counted(content.disagreeing, "known class has", "known classes have")} a score below ${content.disagrees_below}${listed}.${chosen}`
    : `None: every known class has a score of ${content.disagrees_below} or more.`;
  byId("disagreement-rows").replaceChildren(
    ...shown.map((one) => {
      const row = places.get(one.name);
      const name = row
        ? element("button", { type: "button", onclick: () => enlarge(row) }, one.name)
        : element("span", { title: one.image }, one.name);
      return element("li", {}, element("span", { className: "text" }, name), classLine(one.class, one.score, one.share));
    }),
  );
}

function showFailures() {
  byId("failures-told").textContent = run.failed
    ? `${counted(run.failed, "photograph has", "photographs have")} no label picture.`
    : "None: no photograph failed.";
  byId("failure-kinds").append(
    ...content.failures.map(({ kind, count, examples }) => {
      const list = element(
        "ul",
        {},
        ...examples.map((one) =>
          element("li", {}, element("span", { className: "text" }, one.name), element("small", { className: "text" }, one.error)),
        ),
      );
      if (count > examples.length) list.append(element("li", {}, `and ${number(count - examples.length)} more, in the manifest.`));
      const summary = element("summary", {}, `${number(count)} × `, element("span", { className: "text" }, kind));
      return element("details", { open: run.failed <= 10 }, summary, list);
    }),
  );
}

function showSettings() {
  byId("setting-rows").append(
    ...content.settings.map(([name, value]) =>
      element("tr", {}, element("td", { className: "text" }, name), element("td", { className: "text" }, value)),
    ),
  );
}

// ---- Thumbnails.

const cards = new Map(thumbnails.map((row) => [row, card(row)]));

function missing(row) {
  if (row.alone === null && row.with_labels === null) return "neither the photograph nor its label picture can be read";
  if (row.alone === null) return "the photograph cannot be read any more: labels alone";
  return row.with_labels === null ? "the label picture cannot be read: photograph alone" : "";
}

function pictureOf(row, alone) {
  return alone ? row.alone ?? row.with_labels : row.with_labels ?? row.alone;
}

function card(row) {
  const told = element("span", { className: "told" }, element("span", { className: "text" }, row.name));
  told.append(...row.classes.map((one) => classLine(...one)));
  if (!row.classes.length) told.append(element("span", { className: "class" }, "no class"));
  told.append(element("span", { className: "confidence" }, `confidence ${probability(row.confidence)}`));
  if (missing(row)) told.append(element("span", { className: "missing" }, missing(row)));
  const frame = element("span", { className: "frame" });
  const button = element("button", { type: "button", className: "card" }, frame, told);
  if (pictureOf(row, false) === null) {
    frame.textContent = "no picture";
  } else {
    const image = element("img", { alt: "", loading: "lazy", decoding: "async", src: pictureOf(row, false) });
    frame.append(image);
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") image.src = pictureOf(row, !state.alone);
    });
    button.addEventListener("pointerleave", () => {
      image.src = pictureOf(row, state.alone);
    });
  }
  button.addEventListener("click", () => enlarge(row));
  return element("li", {}, button);
}

function lowestScore(row) {
  const scores = row.classes.filter(([one]) => state.chosen === undefined || one === state.chosen).map(([, score]) => score);
  return scores.length ? Math.min(...scores) : Infinity;
}

const ORDERS = {
  confidence: (one, other) => one.confidence - other.confidence,
  score: (one, other) => {
    const [left, right] = [lowestScore(one), lowestScore(other)];
    return left === right ? 0 : left - right;
  },
  name: (one, other) => (one.name < other.name ? -1 : Number(one.name > other.name)),
};

function shownRows() {
  const isShown = (row) =>
    state.chosen === undefined ||
    (state.chosen === null ? !row.classes.length : row.classes.some(([one]) => one === state.chosen));
  const direction = state.ascending ? 1 : -1;
  return thumbnails.filter(isShown).sort((one, other) => direction * ORDERS[state.sort](one, other));
}

function showThumbnails() {
  const rows = shownRows();
  byId("grid").replaceChildren(...rows.map((row) => cards.get(row)));
  byId("shown").textContent = `${number(rows.length)} of ${counted(thumbnails.length, "thumbnail")} shown`;
  for (const button of document.querySelectorAll("[data-sort]")) {
    const sorted = button.dataset.sort === state.sort;
    button.setAttribute("aria-pressed", sorted);
    button.textContent = button.dataset.sort + (sorted ? (state.ascending ? " ↑" : " ↓") : "");
    button.title = sorted ? (state.ascending ? "lowest first" : "highest first") : "";
  }
}

function sortBy(order) {
  state.ascending = state.sort === order ? !state.ascending : true;
  state.sort = order;
  showThumbnails();
}

function showAlone(alone) {
  state.alone = alone;
  byId("alone").setAttribute("aria-pressed", alone);
  for (const [row, item] of cards) {
    const image = item.querySelector("img");
    if (image) image.src = pictureOf(row, alone);
  }
}

function tellWhatIsMissing() {
  byId("spread").textContent =
    thumbnails.length < run.labeled
      ? `Of ${counted(run.labeled, "labelled photograph")}, ${number(thumbnails.length)} have a thumbnail, evenly spread over the run. ` +
        "Counts, histograms and disagreements are of all."
      : "";
  const count = (test) => thumbnails.filter(test).length;
  const told = [
    [count((row) => row.alone === null), "cannot be read any more, and only the label picture is shown"],
    [count((row) => row.with_labels === null), "cannot be shown with labels, because the label picture cannot be read"],
  ].filter(([some]) => some);
  byId("unreadable").hidden = !told.length;
  byId("unreadable").textContent = told.map(([some, what]) => `${counted(some, "photograph")} ${what}.`).join(" ");
}

// ---- One photograph, enlarged.

function enlarge(row) {
  state.enlarged = row;
  byId("enlarged-name").replaceChildren(element("span", { className: "text" }, row.name));
  const pictures = [
    [row.with_labels, row.alone === null ? "labels alone" : "with labels"],
    [row.alone, "photograph"],
  ];
  byId("enlarged-pictures").replaceChildren(
    ...pictures.filter(([source]) => source !== null).map(([source, alt]) => element("img", { src: source, alt })),
  );
  const facts = [
    ["photograph", row.photograph],
    ["size", `${row.size[1]} × ${row.size[0]} pixels`],
    ["confidence", probability(row.confidence)],
    ...row.classes.map(([one, score, share]) => [
      classes.get(one).name,
      `${isLow(score) ? "low " : ""}score ${probability(score)}, ${percent(share)} of the area`,
    ]),
  ];
  if (missing(row)) facts.push(["note", missing(row)]);
  byId("enlarged-facts").replaceChildren(
    ...facts.flatMap(([name, value]) => [element("dt", { className: "text" }, name), element("dd", { className: "text" }, value)]),
  );
  if (!byId("enlarged").open) byId("enlarged").showModal();
}

function enlargeBeside(step) {
  const rows = shownRows();
  const at = rows.indexOf(state.enlarged);
  enlarge(rows[(at + step + rows.length) % rows.length] ?? state.enlarged);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (byId("enlarged").open) {
    if (event.key === "ArrowLeft") enlargeBeside(-1);
    if (event.key === "ArrowRight") enlargeBeside(1);
  } else if (event.key.toLowerCase() === "p") {
    showAlone(!state.alone);
  }
}

showFigures();
showClasses();
showFailures();
showSettings();
tellWhatIsMissing();
choose(undefined);

for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortBy(button.dataset.sort));
byId("alone").addEventListener("click", () => showAlone(!state.alone));
byId("all-classes").addEventListener("click", () => choose(undefined));
byId("previous").addEventListener("click", () => enlargeBeside(-1));
byId("next").addEventListener("click", () => enlargeBeside(1));
byId("close").addEventListener("click", () => byId("enlarged").close());
// Only what is outside of the dialog's content is the dialog itself.
byId("enlarged").addEventListener("click", (event) => {
  if (event.target === byId("enlarged")) byId("enlarged").close();
});
document.addEventListener("keydown", onKey);
