/* The triage view: sorts, filters and counts the cases, paints those in view, keeps notes. */
(function () {
  const source = document.getElementById("cases-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  source.textContent = "";
  const n = data.score.length;
  const $ = (id) => document.getElementById(id);
  const list = $("cases");
  const template = $("case");
  const GAP = 12, LEAST_WIDTH = 400, PRINTED = 40, PRINTED_ON_REQUEST = 200;
  const format = (value, digits = 4) => (value === null ? "–" : Number(value.toPrecision(digits)).toString());
  const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;

  const state = { order: [], cursor: 0, threshold: 0, columns: 1, height: 330, opacity: 80 };
  const cards = new Map(); // position in the order -> card in the page

  /* ---- notes: in this browser's storage where it has one ---- */

  const notes = (function () {
    const key = `normalis-notes-${data.id}`;
    let all = {}, kept = true;
    try {
      all = JSON.parse(localStorage.getItem(key)) || {};
      localStorage.setItem(key, JSON.stringify(all));
    } catch {
      kept = false;
    }
    const name = (i) => `${data.path[i]}|${data.place[i]}`;
    const get = (i) => all[name(i)] || { mark: false, note: "" };
    return {
      get,
      count: () => Object.keys(all).length,
      set(i, change) {
        const entry = { ...get(i), ...change };
        if (entry.mark || entry.note) all[name(i)] = entry;
        else delete all[name(i)];
        try {
          localStorage.setItem(key, JSON.stringify(all));
        } catch {
          kept = false;
        }
        showNotes();
      },
      get kept() { return kept; },
    };
  })();

  function showNotes() {
    const count = notes.count();
    $("notes-state").textContent = notes.kept
      ? `${count} marked or noted, kept in this browser`
      : `${count} marked or noted; this browser keeps nothing: export before you close the page`;
  }

  /* ---- threshold and counts ---- */

  const finite = data.score.filter((s) => s !== null);
  const lowest = finite.reduce((a, b) => Math.min(a, b), Infinity);
  const highest = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  // Where a few scores are many times the usual one, equal steps would waste the slider on them.
  const middle = [...finite].sort((a, b) => a - b)[finite.length >> 1];
  const isLog = lowest > 0 && highest > 4 * middle;
  const scale = isLog ? Math.log : (s) => s;
  const span = scale(highest) - scale(lowest) || 1;
  const along = (score) => (isLog && score <= 0 ? 0 : Math.min(1, Math.max(0, (scale(score) - scale(lowest)) / span)));
  const scoreAt = (share) => {
    const at = scale(lowest) + span * share;
    return isLog ? Math.exp(at) : at;
  };
  const above = (i) => data.score[i] !== null && data.score[i] > state.threshold;

  function setThreshold(value, from) {
    state.threshold = value;
    if (from !== "slider") $("threshold").value = Math.round(1000 * along(value));
    if (from !== "number") $("threshold-value").value = Number(value.toPrecision(5));
    $("threshold").setAttribute("aria-valuetext", format(value));
    for (const button of $("presets").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.threshold) === value));
    }
    drawLine();
    count();
    const which = $("which").value;
    if (["above", "below", "missed", "alarms"].includes(which)) refresh();
    else cards.forEach((card) => showFlag(card));
    preparePrint();
  }

  function expected() {
    const c = data.calibration;
    if (!c) return null;
    let low = 0, high = c.scores.length; // scores descend: how many are above the threshold?
    while (low < high) {
      const middle = (low + high) >> 1;
      if (c.scores[middle] > state.threshold) low = middle + 1;
      else high = middle;
    }
    return (1 + (low ? c.above[low - 1] : 0)) / (c.units + 1);
  }

  /* Wilson's interval; images of one patient are not independent, so it is given per image only. */
  function wilson(hits, total) {
    const z = 1.96, p = hits / total, d = 1 + (z * z) / total;
    const middle = (p + (z * z) / (2 * total)) / d;
    const half = (z / d) * Math.sqrt((p * (1 - p)) / total + (z * z) / (4 * total * total));
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  const hasPatients = data.patient.some(Boolean);

  function count() {
    let flagged = 0, normals = 0, anomalies = 0, alarms = 0, found = 0;
    const patients = new Set(), flaggedPatients = new Set();
    for (let i = 0; i < n; i++) {
      const is = above(i), label = data.label[i];
      flagged += is;
      if (label === 0) { normals++; alarms += is; }
      if (label === 1) { anomalies++; found += is; }
      if (data.patient[i]) {
        patients.add(data.patient[i]);
        if (is) flaggedPatients.add(data.patient[i]);
      }
    }
    const rows = [["flagged", `${flagged}/${n}`, percent(flagged / n)]];
    if (patients.size) {
      rows.push(["patients with a flag", `${flaggedPatients.size}/${patients.size}`,
        percent(flaggedPatients.size / patients.size)]);
    }
    if (anomalies) rows.push(["sensitivity", `${found}/${anomalies}`, withRange(found, anomalies)]);
    if (normals) rows.push(["false-positive rate", `${alarms}/${normals}`, withRange(alarms, normals)]);
    const rate = expected();
    if (rate !== null) {
      rows.push(["expected at most", "", percent(Math.min(1, rate))]);
    }
    const parts = rows.flatMap(([name, value, share]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name;
      const b = document.createElement("b");
      b.textContent = share;
      dd.append(b, ` ${value}`);
      return [dt, dd];
    });
    $("counts").replaceChildren(...parts);
  }

  function withRange(hits, total) {
    if (hasPatients) return percent(hits / total);
    const [low, high] = wilson(hits, total);
    return `${percent(hits / total)} (${Math.round(100 * low)}–${Math.round(100 * high)})`;
  }

  /* ---- the small histogram above the slider ---- */

  function drawBars() {
    const bins = 60, counts = [new Array(bins).fill(0), new Array(bins).fill(0), new Array(bins).fill(0)];
    for (let i = 0; i < n; i++) {
      if (data.score[i] === null) continue;
      const bin = Math.min(bins - 1, Math.floor(bins * along(data.score[i])));
      counts[data.label[i] === null ? 2 : data.label[i]][bin]++;
    }
    const most = Math.max(1, ...counts[0].map((c, b) => c + counts[1][b] + counts[2][b]));
    for (let b = 0; b < bins; b++) {
      let base = 52;
      ["normal", "anomalous", "unlabelled"].forEach((name, group) => {
        if (!counts[group][b]) return;
        const height = (50 * counts[group][b]) / most;
        base -= height;
        $("bars").append(shape("rect", { x: b * 5 + 0.4, y: base, width: 4.2, height, class: name }));
      });
    }
    $("bars").append(shape("line", { id: "cut", y1: 0, y2: 52, "vector-effect": "non-scaling-stroke" }));
  }

  function shape(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function drawLine() {
    const x = 300 * along(state.threshold);
    $("cut").setAttribute("x1", x);
    $("cut").setAttribute("x2", x);
  }

  /* ---- which cases, in which order ---- */

  const className = (i) => (data.label[i] === null ? "unlabelled" : data.label[i] ? "anomalous" : "normal");
  const text = new Intl.Collator(undefined, { numeric: true });
  const last = (value) => (value === null ? Infinity : value);
  const orders = {
    // Two missing p-values differ by NaN, which the next criterion replaces.
    p: (a, b) => last(data.p[a]) - last(data.p[b]) || data.score[b] - data.score[a],
    score: (a, b) => data.score[b] - data.score[a],
    "-score": (a, b) => data.score[a] - data.score[b],
    path: (a, b) => text.compare(data.path[a], data.path[b]) || text.compare(data.place[a], data.place[b]),
    patient: (a, b) => text.compare(data.patient[a], data.patient[b]) || data.score[b] - data.score[a],
  };

  function filters() {
    const search = $("search").value.trim().toLowerCase();
    const patient = $("patient").value.trim();
    const kind = $("class").value, which = $("which").value;
    const known = patient && data.patient.includes(patient);
    return [
      search && ((i) => data.path[i].toLowerCase().includes(search)),
      patient && ((i) => (known ? data.patient[i] === patient : data.patient[i].includes(patient))),
      kind && ((i) => (kind.startsWith("kind:") ? data.kind[i] === kind.slice(5) : className(i) === kind)),
      which === "above" && above,
      which === "below" && ((i) => !above(i)),
      which === "missed" && ((i) => data.label[i] === 1 && !above(i)),
      which === "alarms" && ((i) => data.label[i] === 0 && above(i)),
      which === "marked" && ((i) => notes.get(i).mark || notes.get(i).note !== ""),
    ].filter(Boolean);
  }

  function refresh() {
    const current = state.order[state.cursor];
    const tests = filters();
    state.order = [];
    for (let i = 0; i < n; i++) if (tests.every((fits) => fits(i))) state.order.push(i);
    state.order.sort(orders[$("sort").value]);
    state.cursor = Math.max(0, state.order.indexOf(current));
    cards.forEach((card) => card.remove());
    cards.clear();
    $("shown").textContent = `${state.order.length} of ${n} images`;
    $("none").hidden = state.order.length > 0;
    layout();
    preparePrint();
  }

  /* ---- cards: only those in view exist ---- */

  function layout() {
    const width = list.clientWidth;
    state.columns = Math.max(1, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
    state.width = (width - GAP * (state.columns - 1)) / state.columns;
    list.style.setProperty("--card-width", `${state.width}px`);
    if (state.order.length) {
      const probe = makeCard(0);
      list.append(probe);
      state.height = probe.offsetHeight + GAP;
      probe.remove();
    }
    list.style.height = `${Math.ceil(state.order.length / state.columns) * state.height}px`;
    cards.forEach((card, position) => place(card, position));
    render();
  }

  function place(card, position) {
    const x = (position % state.columns) * (state.width + GAP);
    const y = Math.floor(position / state.columns) * state.height;
    card.style.transform = `translate(${x}px, ${y}px)`;
  }

  function render() {
    const top = -list.getBoundingClientRect().top;
    const spare = 1.0 * innerHeight;
    const first = Math.max(0, Math.floor((top - spare) / state.height) * state.columns);
    const end = Math.min(state.order.length,
      Math.ceil((top + innerHeight + spare) / state.height) * state.columns);
    for (const [position, card] of cards) {
      if ((position < first || position >= end) && !card.contains(document.activeElement)) {
        card.remove();
        cards.delete(position);
      }
    }
    for (let position = first; position < end; position++) {
      if (cards.has(position)) continue;
      const card = makeCard(position);
      place(card, position);
      cards.set(position, card);
      // In reading order, for those who move with the tab key or a screen reader.
      const next = [...cards.keys()].filter((p) => p > position).sort((a, b) => a - b)[0];
      list.insertBefore(card, next === undefined ? null : cards.get(next));
    }
    showCursor();
  }

  function makeCard(position) {
    const i = state.order[position];
    const card = template.content.firstElementChild.cloneNode(true);
    const part = (name) => card.querySelector(`.${name}`);
    const file = data.path[i] + (data.place[i] === "" ? "" : ` [${data.place[i]}]`);
    card.dataset.case = i;
    card.dataset.position = position;
    card.setAttribute("aria-posinset", position + 1);
    card.setAttribute("aria-setsize", state.order.length);
    card.setAttribute("aria-label", `${file}, ${className(i)}, score ${format(data.score[i])}`);
    part("rank").textContent = position + 1;
    part("file").textContent = file;
    part("file").title = data.root ? `${data.root}/${file}` : file;
    part("chip").className = `chip ${className(i)}`;
    part("chip").textContent = data.label[i] === null ? "" : data.kind[i] && data.label[i] ? data.kind[i] : className(i);
    const facts = [["p", format(data.p[i], 3)], ["score", format(data.score[i])]];
    if (data.p[i] === null) facts.shift();
    if (data.patient[i]) facts.push(["patient", data.patient[i]]);
    facts.forEach(([name, value]) => {
      const b = document.createElement("b");
      b.textContent = value;
      part("meta").append(`${name} `, b, "   ");
    });
    part("meta").title = facts.map((f) => f.join(" ")).join(", ");
    part("note").value = notes.get(i).note;
    part("note").setAttribute("aria-label", `Note on ${file}`);
    showMark(card, i);
    showFlag(card);
    if (data.photo[i]) paint(card, i, file);
    else card.classList.add("empty");
    return card;
  }

  function showMark(card, i) {
    const button = card.querySelector(".mark"), on = notes.get(i).mark;
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "★ marked" : "☆ mark";
  }

  function showFlag(card) {
    const is = above(Number(card.dataset.case));
    card.classList.toggle("above", is);
    card.querySelector(".flag").textContent = is ? "▲ above" : "";
  }

  /* ---- pictures ---- */

  async function decode(base64) {
    const image = new Image();
    image.src = `data:image/webp;base64,${base64}`;
    await image.decode();
    return image;
  }

  async function paint(card, i, file) {
    const canvas = (name) => card.querySelector(`canvas.${name}`);
    const label = (name, what) => canvas(name).setAttribute("aria-label", `${what} of ${file}`);
    label("image", "Image");
    label("under", "Anomaly map over the image");
    if (data.rebuilt[i]) label("rebuilt", "Reconstruction");
    else card.classList.add("no-rebuilt");
    try {
      const [photo, level] = await Promise.all([decode(data.photo[i]), decode(data.level[i])]);
      const side = photo.naturalHeight;
      for (const [name, x] of [["image", 0], ["rebuilt", side], ["under", 0]]) {
        if (name === "rebuilt" && !data.rebuilt[i]) continue;
        canvas(name).getContext("2d").drawImage(photo, x, 0, side, side, 0, 0, 160, 160);
      }
      colour(canvas("map"), level);
      drawMarks(card, data.marks[i] || []);
      card.dataset.painted = "yes";
    } catch {
      card.classList.add("empty");
    }
  }

  /* Boxes around areas above normal images; else a ring at the highest place. */
  function drawMarks(card, marks) {
    const canvas = card.querySelector("canvas.marks"), context = canvas.getContext("2d");
    const w = canvas.width, h = canvas.height;
    context.clearRect(0, 0, w, h);
    const line = (colour, width, path) => {
      for (const [c, extra] of [["#000", 3], [colour, 0]]) {
        context.strokeStyle = c;
        context.lineWidth = width + extra;
        context.beginPath();
        path();
        context.stroke();
      }
    };
    for (const [left, top, right, bottom, x, y, above] of marks) {
      if (above) line("#00e5ff", 2, () => context.rect(left * w - 2, top * h - 2, (right - left) * w + 4, (bottom - top) * h + 4));
      else line("#fff", 2, () => context.arc(x * w, y * h, 14, 0, 2 * Math.PI));
    }
    const [short, long] = whereText(marks), cap = card.querySelector(".where");
    cap.textContent = short;
    cap.title = long;
  }

  /* What the map shows, in the few words that fit on the picture and in a sentence. */
  function whereText(marks) {
    if (!marks.length) return ["map", ""];
    const [, , , , , , above, p, px, mm2, border] = marks[0];
    const chance = p === null ? "" : `, p ${format(p, 2)}`;
    const edge = border ? ", at the border" : "";
    if (!above) return [`ring: highest${chance}`, `Nothing is above normal images; the ring is at the highest place${chance}${edge}.`];
    const size = mm2 === null ? `${format(px, 3)} px` : `${format(mm2, 3)} mm²`;
    const count = marks.length > 1 ? `${marks.length} areas` : "1 area";
    return [`${count}, ${size}${chance}`, `${count} above normal images; the highest has ${size}${chance}${edge}.`];
  }

  function colour(canvas, level) {
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(level, 0, 0, canvas.width, canvas.height);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let k = 0; k < pixels.data.length; k += 4) {
      const at = 4 * pixels.data[k];
      for (let c = 0; c < 4; c++) pixels.data[k + c] = at ? data.colours[at + c] : 0;
    }
    context.putImageData(pixels, 0, 0);
  }

  function setOpacity(value) {
    state.opacity = value;
    $("opacity").value = value;
    $("opacity-value").textContent = `${value} %`;
    document.documentElement.style.setProperty("--map-opacity", value / 100);
  }

  /* ---- moving about ---- */

  function showCursor() {
    cards.forEach((card, position) => {
      card.tabIndex = position === state.cursor ? 0 : -1;
      card.classList.toggle("current", position === state.cursor);
    });
  }

  function moveTo(position) {
    if (!state.order.length) return;
    state.cursor = Math.min(state.order.length - 1, Math.max(0, position));
    const row = Math.floor(state.cursor / state.columns) * state.height;
    const top = list.getBoundingClientRect().top + row;
    const bar = document.querySelector(".bar").offsetHeight + GAP;
    if (top < bar || top + state.height > innerHeight) {
      const middle = Math.max(bar, (innerHeight - state.height) / 2);
      scrollTo({ top: scrollY + top - middle, behavior: "instant" });
    }
    render();
    cards.get(state.cursor)?.focus({ preventScroll: true });
  }

  function currentCard() {
    render();
    return cards.get(state.cursor);
  }

  function mark(card) {
    const i = Number(card.dataset.case);
    notes.set(i, { mark: !notes.get(i).mark });
    showMark(card, i);
  }

  let mapBefore = 80;
  const anywhere = {
    j: () => moveTo(started() ? state.cursor + 1 : state.cursor),
    k: () => moveTo(started() ? state.cursor - 1 : state.cursor),
    f: () => { const card = currentCard(); if (card) mark(card); },
    n: () => { moveTo(state.cursor); currentCard()?.querySelector(".note").focus(); },
    m: () => {
      if (state.opacity > 0) mapBefore = state.opacity;
      setOpacity(state.opacity > 0 ? 0 : mapBefore);
    },
    "/": () => $("search").focus(),
  };
  const inList = {
    ArrowRight: () => moveTo(state.cursor + 1),
    ArrowLeft: () => moveTo(state.cursor - 1),
    ArrowDown: () => moveTo(state.cursor + state.columns),
    ArrowUp: () => moveTo(state.cursor - state.columns),
    Home: () => moveTo(0),
    End: () => moveTo(state.order.length - 1),
  };
  // The first press of j or k goes to the current card, later ones on from there.
  const started = () => list.contains(document.activeElement);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    const writes = target.matches("input, select, textarea");
    if (event.key === "Escape" || (event.key === "Enter" && target.classList.contains("note"))) {
      const card = target.closest(".case");
      if (card && writes) card.focus({ preventScroll: true });
      else if (writes) target.blur();
      return;
    }
    if (writes && target.type !== "range") return;
    const action = anywhere[event.key] || (started() ? inList[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  });

  list.addEventListener("focusin", (event) => {
    const card = event.target.closest(".case");
    if (!card) return;
    state.cursor = Number(card.dataset.position);
    showCursor();
  });
  list.addEventListener("click", (event) => {
    if (event.target.classList.contains("mark")) mark(event.target.closest(".case"));
  });
  list.addEventListener("input", (event) => {
    const card = event.target.closest(".case");
    notes.set(Number(card.dataset.case), { note: event.target.value });
  });

  /* ---- export ---- */

  /* A cell that a spreadsheet would run as a formula is led by an apostrophe. */
  function cell(value) {
    let shown = value === null || value === undefined ? "" : String(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(shown)) shown = `'${shown}`;
    return /[",\r\n]/.test(shown) ? `"${shown.replaceAll('"', '""')}"` : shown;
  }

  function exportNotes() {
    const columns = ["path", "slice", "patient_id", "anomaly_score", "p_value", "threshold",
      "above_threshold", "marked", "note"];
    const rows = [columns];
    [...data.score.keys()].sort(orders.p).forEach((i) => {
      const { mark: marked, note } = notes.get(i);
      if (!marked && !note) return;
      const path = data.root ? `${data.root}/${data.path[i]}` : data.path[i];
      rows.push([path, data.place[i], data.patient[i], data.score[i], data.p[i], state.threshold,
        Number(above(i)), Number(marked), note]);
    });
    const body = rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", body], { type: "text/csv;charset=utf-8" }));
    link.download = `notes-${data.id}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  /* ---- print: a browser prints what is in the page, so the first cases are put there ---- */

  let printTimer = 0, printRun = 0;

  function preparePrint() {
    clearTimeout(printTimer);
    printTimer = setTimeout(() => fillPrint(PRINTED), 1200);
  }

  async function fillPrint(most) {
    const run = ++printRun;
    const chosen = state.order.slice(0, most);
    const title = document.createElement("p");
    title.textContent = `${chosen.length} of ${n} images, score above ${format(state.threshold)} marked ▲.`;
    const made = chosen.map((_, position) => makeCard(position));
    // Cards paint themselves; wait for them, but not for ever.
    for (let tries = 0; tries < 100; tries++) {
      if (made.every((card) => card.dataset.painted || card.classList.contains("empty"))) break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    if (run !== printRun) return;
    for (const card of made) {
      card.removeAttribute("tabindex");
      const field = card.querySelector(".note"), note = document.createElement("span");
      note.className = "noted";
      note.textContent = field.value;
      const isMarked = notes.get(Number(card.dataset.case)).mark;
      card.querySelector(".actions").replaceChildren(isMarked ? "★ marked  " : "", note);
    }
    $("print-cases").replaceChildren(title, ...made);
  }

  async function printNow() {
    $("print").disabled = true;
    await fillPrint(PRINTED_ON_REQUEST);
    $("print").disabled = false;
    window.print();
  }

  /* ---- controls ---- */

  function option(value, title) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = title;
    return made;
  }

  function fillControls() {
    const classes = ["normal", "anomalous", "unlabelled"].filter((c) => data.label.some((_, i) => className(i) === c));
    const kinds = [...new Set(data.kind)].filter(Boolean).sort(text.compare);
    $("class").append(option("", "all"), ...classes.map((c) => option(c, c)),
      ...(kinds.length > 1 ? kinds.map((k) => option(`kind:${k}`, `– ${k}`)) : []));
    const patients = [...new Set(data.patient)].filter(Boolean).sort(text.compare);
    $("patients").append(...patients.map((p) => option(p, "")));
    $("patient").disabled = !patients.length;
    if (!patients.length) $("patient").placeholder = "unknown";
    const labels = data.label.some((l) => l !== null);
    for (const value of ["missed", "alarms"]) {
      if (!labels) $("which").querySelector(`[value=${value}]`).remove();
    }
    if (data.p.every((p) => p === null)) $("sort").querySelector("[value=p]").textContent = "score, highest first";
    $("presets-line").hidden = !data.presets.length;
    for (const { rate, threshold } of data.presets) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = percent(rate);
      button.title = `certified false-positive rate of ${percent(rate)}`;
      button.dataset.threshold = threshold;
      button.addEventListener("click", () => setThreshold(threshold));
      $("presets").append(button);
    }
  }

  function fillPromise() {
    const c = data.calibration;
    if (isLog) $("threshold-legend").textContent = "Threshold (logarithmic)";
    $("promise").textContent = c
      ? `At most: share of ${c.unit === "patient" ? "images of new normal patients" : "new normal images"}, `
        + `by the calibration on ${c.units} ${c.unit}${c.units === 1 ? "" : "s"}.`
      : data.kind_of_calibration === "none"
        ? "No threshold of this page was calibrated: nothing is promised about false positives."
        : `A ${data.kind_of_calibration} calibration promises a rate for p-values, not for this threshold.`;
  }

  function fillScale() {
    if (!data.scale) { $("scale").hidden = true; return; }
    const context = $("ramp").getContext("2d");
    for (let x = 0; x < 256; x++) {
      context.fillStyle = `rgb(${data.colours.slice(4 * x, 4 * x + 3).join(",")})`;
      context.fillRect(x, 0, 1, 1);
    }
    const normals = data.kind_of_calibration === "none" ? "training" : "normal";
    $("quiet").textContent = format(data.scale.quiet, 3);
    $("full").textContent = `${format(data.scale.full, 3)} and above`;
    $("scale-note").textContent = data.scale.rate
      ? `One scale for all images; any colour: as high as in 1 of ${Math.round(1 / data.scale.rate)} ${normals} images.`
      : `One scale for all images; any colour: as high as in about 1 of 20 of the ${normals} images it was set by, too few to promise that of new ones.`;
  }

  $("threshold").addEventListener("input", (e) => setThreshold(e.target.value === "1000" ? highest : scoreAt(e.target.value / 1000), "slider"));
  $("threshold-value").addEventListener("input", (e) => {
    if (Number.isFinite(e.target.valueAsNumber)) setThreshold(e.target.valueAsNumber, "number");
  });
  $("opacity").addEventListener("input", (e) => setOpacity(Number(e.target.value)));
  for (const id of ["search", "patient", "class", "which", "sort"]) {
    $(id).addEventListener("input", () => { state.cursor = 0; refresh(); });
  }
  $("reset").addEventListener("click", () => {
    $("search").value = $("patient").value = $("class").value = "";
    $("which").value = "all";
    $("sort").value = "p";
    refresh();
  });
  $("export").addEventListener("click", exportNotes);
  $("print").addEventListener("click", printNow);

  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; render(); });
  }, { passive: true });
  new ResizeObserver(() => { if (list.clientWidth) layout(); }).observe(list);

  fillControls();
  fillScale();
  fillPromise();
  drawBars();
  showNotes();
  setOpacity(80);
  setThreshold(data.threshold === null ? highest : data.threshold);
  refresh();
})();
