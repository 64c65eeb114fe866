/* The worklist: sorts, groups, filters and counts the cases, paints those in view, keeps notes. */
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

  const state = { order: [], groups: [], rows: [], rowOf: [], cursor: 0, threshold: 0, columns: 1, height: 330, opacity: 80 };
  const cards = new Map(); // position in the order -> card in the page
  const heads = new Map(); // group -> its head in the page
  const HEAD = 40;
  const known = (name, i) => data.known[name]?.[i] || "";
  const fileOf = (i) => data.path[i] + (data.place[i] === "" ? "" : ` [${data.place[i]}]`);
  const pathOf = (i) => (data.root ? `${data.root}/${fileOf(i)}` : fileOf(i));

  /* A long name is cut in the middle: its end tells files apart. */
  function split(element, name) {
    const tail = name.length > 24 ? 14 : 0;
    element.querySelector(".start").textContent = tail ? name.slice(0, -tail) : name;
    element.querySelector(".end").textContent = tail ? name.slice(-tail) : "";
  }

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
    const get = (i) => all[name(i)] || { mark: false, note: "", seen: false };
    const done = []; // what undo puts back: lists of [case, entry before]
    return {
      get,
      count: () => Object.values(all).filter((entry) => entry.mark || entry.note).length,
      remember: (cases) => done.push(cases.map((i) => [i, get(i)])),
      canUndo: () => done.length > 0,
      takeBack: () => done.pop(),
      set(i, change, show = true) {
        const entry = { ...get(i), ...change };
        if (entry.mark || entry.note || entry.seen) all[name(i)] = entry;
        else delete all[name(i)];
        try {
          localStorage.setItem(key, JSON.stringify(all));
        } catch {
          kept = false;
        }
        if (show) showNotes();
      },
      get kept() { return kept; },
    };
  })();

  function showNotes() {
    const count = notes.count();
    $("notes-state").textContent = notes.kept
      ? `${count} marked or noted, kept in this browser`
      : `${count} marked or noted; this browser keeps nothing: export before you close the page`;
    let seen = 0;
    for (let i = 0; i < n; i++) seen += Boolean(notes.get(i).seen);
    $("reviewed-state").textContent = `${seen} of ${n} reviewed`;
    $("undo").disabled = !notes.canUndo();
  }

  /* Change a case, or several at once, so that undo puts all of it back. */
  function change(cases, entry) {
    notes.remember(cases);
    for (const i of cases) notes.set(i, entry, false);
    showStates();
  }

  function undo() {
    const before = notes.takeBack();
    if (!before) return;
    for (const [i, entry] of before) notes.set(i, entry, false);
    showStates();
    const what = before.length === 1 ? fileOf(before[0][0]) : `${before.length} images`;
    $("notes-state").textContent += `; undone: ${what}`;
  }

  function showStates() {
    showNotes();
    cards.forEach((card) => {
      const i = Number(card.dataset.case);
      showMark(card, i);
      const field = card.querySelector(".note");
      if (document.activeElement !== field) field.value = notes.get(i).note;
    });
    heads.forEach((head, g) => showHead(head, state.groups[g]));
    viewer.status();
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
    const isWhole = patient && data.patient.includes(patient);
    const most = $("pmost").valueAsNumber;
    const is = (name) => $(name).value && ((i) => known(name, i) === $(name).value);
    return [
      is("view"),
      is("seen_by"),
      Number.isFinite(most) && ((i) => data.p[i] !== null && data.p[i] <= most),
      search && ((i) => data.path[i].toLowerCase().includes(search)
        || known("accession_number", i).toLowerCase().includes(search)),
      patient && ((i) => (isWhole ? data.patient[i] === patient : data.patient[i].includes(patient))),
      kind && ((i) => (kind.startsWith("kind:") ? data.kind[i] === kind.slice(5) : className(i) === kind)),
      which === "above" && above,
      which === "below" && ((i) => !above(i)),
      which === "missed" && ((i) => data.label[i] === 1 && !above(i)),
      which === "alarms" && ((i) => data.label[i] === 0 && above(i)),
      which === "marked" && ((i) => notes.get(i).mark || notes.get(i).note !== ""),
      which === "unread" && ((i) => !notes.get(i).seen),
      which === "read" && ((i) => notes.get(i).seen),
    ].filter(Boolean);
  }

  /* Show what fits the filters; the current case stays the current one, or the first becomes it. */
  function refresh(stay = true) {
    const current = stay ? state.order[state.cursor] : undefined;
    const tests = filters();
    state.order = [];
    for (let i = 0; i < n; i++) if (tests.every((fits) => fits(i))) state.order.push(i);
    state.order.sort(orders[$("sort").value]);
    group();
    state.cursor = Math.max(0, state.order.indexOf(current));
    for (const shown of [cards, heads]) {
      shown.forEach((element) => element.remove());
      shown.clear();
    }
    $("shown").textContent = `${state.order.length} of ${n} images`;
    $("none").hidden = state.order.length > 0;
    layout();
    preparePrint();
  }

  /* Cases of one patient or study stand together, where its first case of this order would. */
  function group() {
    const by = $("group").value;
    const key = { none: () => "", patient: (i) => data.patient[i], study: (i) => known("study_uid", i) }[by];
    const found = new Map();
    state.order.forEach((i, at) => {
      const name = by === "none" ? "" : key(i) || `?${at}`; // of whom nothing is known: alone
      if (!found.has(name)) found.set(name, { name: key(i), cases: [] });
      found.get(name).cases.push(i);
    });
    state.groups = [...found.values()];
    const p = (g) => (by === "patient" ? data.patients[g.name] : undefined);
    if (by === "patient" && $("sort").value === "p" && state.groups.some((g) => p(g) !== undefined)) {
      state.groups.sort((a, b) => (p(a) ?? Infinity) - (p(b) ?? Infinity) || 0);
    }
    state.order = state.groups.flatMap((g) => g.cases);
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
    layRows();
    cards.forEach((card, position) => place(card, position));
    heads.forEach((head, g) => placeHead(head, g));
    render();
  }

  /* Rows of cards, and of heads where there are groups; each knows where it begins. */
  function layRows() {
    const headed = $("group").value !== "none";
    state.rows = [];
    state.rowOf = new Int32Array(state.order.length);
    let top = 0, start = 0;
    state.groups.forEach((group, g) => {
      if (headed) {
        state.rows.push({ top, head: g, start, count: 0 });
        top += HEAD;
      }
      for (let k = 0; k < group.cases.length; k += state.columns) {
        const count = Math.min(state.columns, group.cases.length - k);
        state.rowOf.fill(state.rows.length, start, start + count);
        state.rows.push({ top, start, count });
        top += state.height;
        start += count;
      }
    });
    list.style.height = `${top}px`;
  }

  function place(card, position) {
    const row = state.rows[state.rowOf[position]];
    const x = (position - row.start) * (state.width + GAP);
    card.style.transform = `translate(${x}px, ${row.top}px)`;
  }

  function placeHead(head, g) {
    head.style.transform = `translate(0, ${state.rows.find((row) => row.head === g).top}px)`;
  }

  /* Return the first row that ends below a height. */
  function rowAt(height) {
    let low = 0, high = state.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((state.rows[middle + 1]?.top ?? Infinity) <= height) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function render() {
    const top = -list.getBoundingClientRect().top;
    const spare = 1.0 * innerHeight;
    const wanted = new Set(), wantedHeads = new Map();
    for (let r = rowAt(top - spare); r < state.rows.length; r++) {
      const row = state.rows[r];
      if (row.top > top + innerHeight + spare) break;
      if (row.head !== undefined) wantedHeads.set(row.head, row);
      for (let k = 0; k < row.count; k++) wanted.add(row.start + k);
    }
    for (const [position, card] of cards) {
      if (!wanted.has(position) && !card.contains(document.activeElement)) {
        card.remove();
        cards.delete(position);
      }
    }
    for (const [g, head] of heads) {
      if (!wantedHeads.has(g) && !head.contains(document.activeElement)) {
        head.remove();
        heads.delete(g);
      }
    }
    let isNew = false;
    for (const position of wanted) {
      if (cards.has(position)) continue;
      const card = makeCard(position);
      place(card, position);
      cards.set(position, card);
      isNew = true;
    }
    for (const [g, row] of wantedHeads) {
      if (heads.has(g)) continue;
      const head = makeHead(g);
      head.style.transform = `translate(0, ${row.top}px)`;
      head.dataset.start = row.start;
      heads.set(g, head);
      isNew = true;
    }
    if (isNew) inReadingOrder();
    showCursor();
  }

  /* For those who move with the tab key or a screen reader. What has the focus is not moved. */
  function inReadingOrder() {
    const at = (e) => 2 * Number(e.dataset.position ?? e.dataset.start) + (e.dataset.position ? 1 : 0);
    const sorted = [...heads.values(), ...cards.values()].sort((a, b) => at(a) - at(b));
    const still = sorted.findIndex((e) => e.contains(document.activeElement));
    sorted.slice(0, Math.max(0, still)).forEach((e) => list.insertBefore(e, sorted[still]));
    sorted.slice(still + 1).forEach((e) => list.append(e));
  }

  function makeHead(g) {
    const head = $("group-head").content.firstElementChild.cloneNode(true);
    showHead(head, state.groups[g]);
    head.querySelector(".gseen").addEventListener("click", () => {
      const all = state.groups[g].cases, left = all.filter((i) => !notes.get(i).seen);
      change(left.length ? left : all, { seen: left.length > 0 });
    });
    return head;
  }

  function showHead(head, { name, cases }) {
    const study = $("group").value === "study", first = cases[0];
    const title = study ? known("accession_number", first) || name : name;
    head.querySelector(".gname").textContent = title ? `${study ? "Study" : "Patient"} ${cutMiddle(title)}` : `No ${study ? "study" : "patient"} known`;
    head.querySelector(".gname").title = name;
    const facts = [cases.length === 1 ? "1 image" : `${cases.length} images`];
    const p = study ? undefined : data.patients[name];
    const lowest = Math.min(...cases.map((i) => last(data.p[i])));
    if (p !== undefined) facts.push(`p of the patient ${format(p, 3)}`);
    else if (Number.isFinite(lowest)) facts.push(`lowest p ${format(lowest, 3)}`);
    const seen = cases.filter((i) => notes.get(i).seen).length;
    if (seen) facts.push(`${seen} reviewed`);
    head.querySelector(".gfacts").textContent = facts.join(" · ");
    const button = head.querySelector(".gseen");
    button.textContent = seen === cases.length ? "✓ all reviewed" : "○ all reviewed";
    button.setAttribute("aria-pressed", String(seen === cases.length));
    button.setAttribute("aria-label", `${button.textContent}: ${title || "nothing known"}`);
  }

  const cutMiddle = (name) => (name.length > 34 ? `${name.slice(0, 16)}…${name.slice(-14)}` : name);

  function makeCard(position) {
    const i = state.order[position];
    const card = template.content.firstElementChild.cloneNode(true);
    const part = (name) => card.querySelector(`.${name}`);
    const file = fileOf(i);
    card.dataset.case = i;
    card.dataset.position = position;
    card.setAttribute("aria-posinset", position + 1);
    card.setAttribute("aria-setsize", state.order.length);
    card.setAttribute("aria-label", `${file}, ${className(i)}, score ${format(data.score[i])}`);
    part("rank").textContent = position + 1;
    split(part("file"), file);
    part("file").title = pathOf(i);
    part("chip").className = `chip ${className(i)}`;
    part("chip").textContent = data.label[i] === null ? "" : data.kind[i] && data.label[i] ? data.kind[i] : className(i);
    const facts = [["p", format(data.p[i], 3)], ["score", format(data.score[i])]];
    if (data.p[i] === null) facts.shift();
    if (data.patient[i]) facts.push(["patient", cutMiddle(data.patient[i])]);
    if (known("view", i)) facts.push(["view", known("view", i)]);
    if (known("seen_by", i)) facts.push(["seen by", known("seen_by", i)]);
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
    const seen = card.querySelector(".seen"), is = Boolean(notes.get(i).seen);
    seen.setAttribute("aria-pressed", String(is));
    seen.textContent = is ? "✓ reviewed" : "○ reviewed";
    card.classList.toggle("read", is);
  }

  function showFlag(card) {
    const is = above(Number(card.dataset.case));
    card.classList.toggle("above", is);
    card.querySelector(".flag").textContent = is ? "▲ above" : "";
  }

  /* ---- pictures ---- */

  async function decode(text) {
    const image = new Image();
    image.src = data.beside ? data.beside + text : `data:image/webp;base64,${text}`;
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
    const context = canvas.getContext("2d", { willReadFrequently: !data.beside });
    context.drawImage(level, 0, 0, canvas.width, canvas.height);
    if (data.beside) return; // pictures of files are coloured already: none may be read here
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
    $("v-opacity").value = value;
    $("v-opacity-value").textContent = `${value} %`;
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
    const row = state.rows[state.rowOf[state.cursor]].top;
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

  const toggle = (i, what) => change([i], { [what]: !notes.get(i)[what] });
  const toggleOn = (what) => { const card = currentCard(); if (card) toggle(Number(card.dataset.case), what); };

  /* The card in the same column of the next row of cards, or of the one before. */
  function below(by) {
    const row = state.rows[state.rowOf[state.cursor]], column = state.cursor - row.start;
    let r = state.rowOf[state.cursor] + by;
    while (state.rows[r] && !state.rows[r].count) r += by;
    const next = state.rows[r];
    moveTo(next ? next.start + Math.min(column, next.count - 1) : by > 0 ? state.order.length - 1 : 0);
  }

  function toggleMap() {
    if (state.opacity > 0) mapBefore = state.opacity;
    setOpacity(state.opacity > 0 ? 0 : mapBefore);
  }

  /* ---- the viewer: one case large ---- */

  const natural = (image, width) => ({ source: image, width, height: image.naturalHeight });
  const viewer = makeViewer({
    split,
    size: () => state.order.length,
    at: (position) => state.order[position],
    describe: (i) => ({
      name: fileOf(i),
      path: pathOf(i),
      facts: [["p-value", format(data.p[i], 3)], ["score", format(data.score[i])],
        ["class", data.label[i] === null ? "" : data.kind[i] || className(i)], ["patient", data.patient[i]],
        ["p of the patient", data.patients[data.patient[i]] === undefined ? "" : format(data.patients[data.patient[i]], 3)],
        ["study", known("study_uid", i)], ["accession", known("accession_number", i)],
        ["series", known("series_description", i)],
        ["view", [known("view", i), known("laterality", i)].filter(Boolean).join(", ")],
        ["seen by", known("seen_by", i)], ["file", pathOf(i)]].filter(([, value]) => value !== ""),
    }),
    noted: (i) => notes.get(i),
    isAbove: (i) => above(i),
    hasPicture: (i) => Boolean(data.photo[i] || data.large[i]),
    hasOwn: (i) => Boolean(data.own[i]),
    async photo(i) {
      const image = await decode(data.large[i] || data.photo[i]);
      // A strip holds the reconstruction beside the image.
      return natural(image, data.large[i] || !data.rebuilt[i] ? image.naturalWidth : image.naturalWidth / 2);
    },
    async map(i, own) {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [160, 160];
      colour(canvas, await decode(own ? data.own[i] : data.level[i]));
      return canvas;
    },
    marks: (i) => data.marks[i] || [],
    contour: (i) => data.contour[i],
    where: (i) => whereText(data.marks[i] || [])[1] || "map",
    findings: (i) => (data.marks[i] || []).filter((m) => m[6]).map((m) => whereText([m])[1].replace("1 area above normal images; the highest has ", "")),
    toggle,
    canUndo: () => notes.canUndo(),
    undo,
    startNote: (i) => { noting = { i, entry: notes.get(i) }; },
    note: (i, text) => writeNote(i, text),
    toggleMap,
    setOpacity,
    closed: (position) => moveTo(position),
  });

  /* What is typed into a note is one step of undo, from when its field was entered. */
  let noting = null;
  function writeNote(i, text) {
    if (noting?.i === i) notes.remember([i]);
    noting = null;
    notes.set(i, { note: text });
    cards.forEach((card) => {
      const field = card.querySelector(".note");
      if (Number(card.dataset.case) === i && document.activeElement !== field) field.value = text;
    });
    viewer.status();
  }

  let mapBefore = 80;
  const anywhere = {
    j: () => moveTo(started() ? state.cursor + 1 : state.cursor),
    k: () => moveTo(started() ? state.cursor - 1 : state.cursor),
    f: () => toggleOn("mark"),
    r: () => toggleOn("seen"),
    n: () => { moveTo(state.cursor); currentCard()?.querySelector(".note").focus(); },
    m: toggleMap,
    "/": () => $("search").focus(),
  };
  const inList = {
    ArrowRight: () => moveTo(state.cursor + 1),
    ArrowLeft: () => moveTo(state.cursor - 1),
    ArrowDown: () => below(1),
    ArrowUp: () => below(-1),
    Home: () => moveTo(0),
    End: () => moveTo(state.order.length - 1),
  };
  // The first press of j or k goes to the current card, later ones on from there.
  const started = () => list.contains(document.activeElement);

  document.addEventListener("keydown", (event) => {
    if (viewer.isOpen()) return;
    if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.target.matches("input, textarea")) {
      event.preventDefault();
      undo();
      return;
    }
    if (event.key === "Enter" && event.target.classList.contains("case")) {
      event.preventDefault();
      viewer.open(Number(event.target.dataset.position));
      return;
    }
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
    const card = event.target.closest(".case");
    if (!card) return;
    const i = Number(card.dataset.case);
    if (event.target.classList.contains("mark")) toggle(i, "mark");
    else if (event.target.classList.contains("seen")) toggle(i, "seen");
    else if (event.target.closest(".open, .panels, .file")) viewer.open(Number(card.dataset.position));
  });
  list.addEventListener("focusin", (event) => {
    if (!event.target.classList.contains("note")) return;
    const i = Number(event.target.closest(".case").dataset.case);
    noting = { i, entry: notes.get(i) };
  });
  list.addEventListener("input", (event) => {
    writeNote(Number(event.target.closest(".case").dataset.case), event.target.value);
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
      "above_threshold", "marked", "reviewed", "note"];
    const rows = [columns];
    [...data.score.keys()].sort(orders.p).forEach((i) => {
      const { mark: marked, note, seen } = notes.get(i);
      if (!marked && !note && !seen) return;
      const path = data.root ? `${data.root}/${data.path[i]}` : data.path[i];
      rows.push([path, data.place[i], data.patient[i], data.score[i], data.p[i], state.threshold,
        Number(above(i)), Number(marked), Number(Boolean(seen)), note]);
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
      const { mark: isMarked, seen } = notes.get(Number(card.dataset.case));
      card.querySelector(".actions").replaceChildren(`${isMarked ? "★ marked  " : ""}${seen ? "✓ reviewed  " : ""}`, note);
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
    for (const name of ["view", "seen_by"]) {
      const values = [...new Set(data.known[name] || [])].filter(Boolean).sort(text.compare);
      $(name).append(option("", "all"), ...values.map((v) => option(v, v)));
      $(name).closest(".pair").hidden = values.length < 2;
    }
    const people = new Set(data.patient.filter(Boolean));
    if (!people.size) $("group").querySelector("[value=patient]").remove();
    if (!data.known.study_uid) $("group").querySelector("[value=study]").remove();
    // Groups help where patients have several images; with one each they are only longer.
    $("group").value = people.size && n >= 2 * people.size ? "patient" : "none";
    if (data.p.every((p) => p === null)) $("pmost").disabled = true;
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
        : `The calibration, ${data.kind_of_calibration}, promises a rate for p-values, not for this threshold.`;
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
  for (const id of ["search", "patient", "view", "seen_by", "pmost", "class", "which", "sort", "group"]) {
    $(id).addEventListener("input", () => refresh(false));
  }
  $("reset").addEventListener("click", () => {
    for (const id of ["search", "patient", "class", "view", "seen_by", "pmost"]) $(id).value = "";
    $("which").value = "all";
    $("sort").value = "p";
    refresh();
  });
  $("undo").addEventListener("click", undo);
  $("export").addEventListener("click", exportNotes);
  $("print").addEventListener("click", printNow);

  /* What is folded is opened by a link to it, and on paper. */
  for (const link of document.querySelectorAll(".bar a")) {
    link.addEventListener("click", () => { const to = $(link.hash.slice(1)); if (to?.tagName === "DETAILS") to.open = true; });
  }
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.more:not([open])")];
    folded.forEach((e) => { e.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((e) => { e.open = false; }));

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
