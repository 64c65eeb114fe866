/* One case large: zoom, pan, window and level, opacity, outlines. What a case is, and what is noted
   of it, is the worklist's, which gives it as `work`. */
function makeViewer(work) {
  const $ = (id) => document.getElementById(id);
  const dialog = $("viewer");
  const stages = [...dialog.querySelectorAll(".stage")];
  const scenes = [...dialog.querySelectorAll(".scene")];
  const funcs = [...dialog.querySelectorAll("feFuncR, feFuncG, feFuncB")];
  const SVG = "http://www.w3.org/2000/svg", MOST = 16, START = { zoom: 1, x: 0, y: 0, window: 100, level: 50 };
  const state = { position: 0, shown: 0, own: false, lines: true, aspect: 1, ...START };
  let opened = 0; // pictures of a case that was left meanwhile are not painted

  /* ---- which case ---- */

  function open(position) {
    Object.assign(state, START);
    if (!dialog.open) dialog.showModal();
    show(position);
    stages[0].focus({ preventScroll: true });
  }

  function step(by) {
    const position = state.position + by;
    if (position >= 0 && position < work.size()) show(position);
  }

  function show(position) {
    state.position = position;
    state.shown = work.at(position);
    Object.assign(state, { zoom: 1, x: 0, y: 0 }); // the window stays: it is the reader's
    const c = work.describe(state.shown);
    work.split(dialog.querySelector("h2"), c.name);
    dialog.querySelector("h2").title = c.path;
    $("viewer-place").textContent = `${position + 1} of ${work.size()}`;
    $("v-prev").disabled = position === 0;
    $("v-next").disabled = position === work.size() - 1;
    $("viewer-facts").replaceChildren(...c.facts.flatMap(([name, value]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name;
      dd.textContent = value;
      return [dt, dd];
    }));
    $("v-note").value = work.noted(state.shown).note;
    const lines = work.findings(state.shown);
    $("v-findings-head").textContent = lines.length === 1 ? "1 finding" : `${lines.length} findings`;
    $("v-findings").parentElement.hidden = !lines.length;
    $("v-findings").replaceChildren(...lines.map((text) => {
      const li = document.createElement("li");
      li.textContent = text;
      return li;
    }));
    status();
    paint();
  }

  function status() {
    const is = work.noted(state.shown);
    const press = (id, on, text) => {
      $(id).setAttribute("aria-pressed", String(Boolean(on)));
      $(id).textContent = text;
    };
    press("v-mark", is.mark, is.mark ? "★ marked" : "☆ mark");
    press("v-seen", is.seen, is.seen ? "✓ reviewed" : "○ reviewed");
    $("viewer-flag").textContent = work.isAbove(state.shown) ? "▲ above the threshold" : "";
    $("v-undo").disabled = !work.canUndo();
    if (document.activeElement !== $("v-note")) $("v-note").value = is.note;
  }

  /* ---- what is painted ---- */

  async function paint() {
    const mine = ++opened, i = state.shown;
    dialog.removeAttribute("data-painted");
    dialog.classList.toggle("nothing", !work.hasPicture(i));
    $("v-own").disabled = !work.hasOwn(i);
    if (!work.hasOwn(i)) state.own = false;
    scaleNote();
    if (!work.hasPicture(i)) {
      $("viewer-where").textContent = $("viewer-size").textContent = "no picture";
      dialog.dataset.painted = "none";
      fit();
      return;
    }
    try {
      const [photo, map] = await Promise.all([work.photo(i), work.map(i, state.own)]);
      if (mine !== opened) return;
      const images = dialog.querySelectorAll(".vimage");
      const name = work.describe(i).name;
      for (const canvas of images) {
        [canvas.width, canvas.height] = [photo.width, photo.height];
        canvas.getContext("2d").drawImage(photo.source, 0, 0, photo.width, photo.height, 0, 0, photo.width, photo.height);
      }
      images[0].setAttribute("aria-label", `Image of ${name}`);
      images[1].setAttribute("aria-label", `Anomaly map over the image of ${name}`);
      state.aspect = photo.width / photo.height;
      const canvas = dialog.querySelector(".vmap");
      [canvas.width, canvas.height] = [map.width, map.height];
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(map, 0, 0);
      $("viewer-size").textContent = `image, ${photo.width} × ${photo.height}`;
      if ($("viewer-similar")) window.showSimilar(i, images[0], $("viewer-similar"));
      drawLines();
      fit();
      dialog.dataset.painted = String(i);
    } catch {
      if (mine !== opened) return;
      dialog.classList.add("nothing");
      $("viewer-where").textContent = $("viewer-size").textContent = "the picture cannot be loaded";
      dialog.dataset.painted = "none";
    }
  }

  function scaleNote() {
    $("v-all").setAttribute("aria-pressed", String(!state.own));
    $("v-own").setAttribute("aria-pressed", String(state.own));
    $("v-scale-note").textContent = state.own
      ? "From this image's lowest place to its highest: where it stands out most, be it normal or not. Not to be compared between images."
      : "As on the worklist: colour is what few normal images reach.";
    if (!work.hasOwn(state.shown)) $("v-scale-note").textContent += " Scored before maps on their own scale were kept.";
  }

  function drawLines() {
    const svg = dialog.querySelector(".vlines"), parts = [];
    const add = (name, attributes) => {
      for (const kind of ["around", "line"]) {
        const made = document.createElementNS(SVG, name);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        made.setAttribute("class", kind);
        made.setAttribute("vector-effect", "non-scaling-stroke");
        parts.push(made);
      }
    };
    if (state.lines) {
      const path = work.contour(state.shown);
      if (path) add("path", { d: path });
      const marks = work.marks(state.shown);
      if (marks.length && (!path || state.own)) {
        const r = 28, wide = Math.max(1, state.aspect), high = Math.max(1, 1 / state.aspect);
        add("ellipse", { cx: 1000 * marks[0][4], cy: 1000 * marks[0][5], rx: r / wide, ry: r / high });
      }
    }
    svg.replaceChildren(...parts);
    $("viewer-where").textContent = work.where(state.shown);
    $("v-lines").checked = state.lines;
  }

  /* ---- where it lies on the screen ---- */

  function fit() {
    for (const [s, scene] of scenes.entries()) {
      const { clientWidth: w, clientHeight: h } = stages[s];
      const wide = Math.min(w, h * state.aspect), high = wide / state.aspect;
      Object.assign(scene.style, { width: `${wide}px`, height: `${high}px`, left: `${(w - wide) / 2}px`, top: `${(h - high) / 2}px` });
    }
    place();
  }

  /* x and y are how far the middle of the picture lies off the middle of the stage, in shares of
     its width and height at this zoom: both panes show the same place. */
  function place() {
    const most = Math.max(0, 0.5 - 0.25 / state.zoom);
    state.x = Math.max(-most, Math.min(most, state.x));
    state.y = Math.max(-most, Math.min(most, state.y));
    if (state.zoom === 1) state.x = state.y = 0;
    for (const scene of scenes) {
      const x = state.x * state.zoom * scene.offsetWidth, y = state.y * state.zoom * scene.offsetHeight;
      scene.style.transform = `translate(${x}px, ${y}px) scale(${state.zoom})`;
      scene.classList.toggle("close", state.zoom > 3);
    }
    $("v-zoom").textContent = `${Math.round(100 * state.zoom)} %`;
    const slope = 100 / state.window, intercept = 0.5 - slope * (state.level / 100);
    const plain = state.window === 100 && state.level === 50;
    for (const f of funcs) {
      f.setAttribute("slope", slope);
      f.setAttribute("intercept", intercept);
    }
    for (const canvas of dialog.querySelectorAll(".vimage")) canvas.style.filter = plain ? "" : "url(#window-level)";
    for (const name of ["window", "level"]) {
      $(`v-${name}`).value = state[name];
      $(`v-${name}-value`).textContent = `${Math.round(state[name])} %`;
    }
  }

  /* Zoom about a point of a stage, given in shares of the picture from its middle. */
  function zoom(by, at = [0, 0]) {
    const before = state.zoom;
    state.zoom = Math.max(1, Math.min(MOST, before * by));
    const keep = 1 / state.zoom - 1 / before;
    state.x += at[0] * keep;
    state.y += at[1] * keep;
    place();
  }

  function pan(x, y) {
    state.x += x / state.zoom;
    state.y += y / state.zoom;
    place();
  }

  function adjust(window, level) {
    state.window = Math.max(2, Math.min(100, state.window + window));
    state.level = Math.max(0, Math.min(100, state.level + level));
    place();
  }

  function reset() {
    Object.assign(state, START);
    place();
  }

  /* ---- mouse, pen and fingers ---- */

  const held = new Map();
  for (const [s, stage] of stages.entries()) {
    const scene = scenes[s];
    const shares = (event) => {
      const box = stage.getBoundingClientRect();
      return [(event.clientX - box.left - box.width / 2) / scene.offsetWidth,
        (event.clientY - box.top - box.height / 2) / scene.offsetHeight];
    };
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-Math.max(-120, Math.min(120, event.deltaY)) / 400), shares(event));
    }, { passive: false });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("dblclick", (event) => (state.zoom > 1 ? reset() : zoom(3, shares(event))));
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      held.set(event.pointerId, event);
    });
    stage.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
      const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
      const apart = (e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY) || 1;
      if (other) zoom(apart(event) / apart(before), shares(event));
      else if (before.buttons === 2 || event.shiftKey) adjust(x / 4, y / 4);
      else pan(x / scene.offsetWidth, y / scene.offsetHeight);
      held.set(event.pointerId, event);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => held.delete(event.pointerId));
    }
  }

  /* ---- keys and controls ---- */

  function toggleOwn(own) {
    if (own && !work.hasOwn(state.shown)) return;
    state.own = own;
    paint();
  }
  function toggleLines() {
    state.lines = !state.lines;
    drawLines();
  }
  const keys = {
    j: () => step(1), k: () => step(-1), PageDown: () => step(1), PageUp: () => step(-1),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: reset,
    w: () => adjust(-4, 0), W: () => adjust(4, 0), l: () => adjust(0, -2), L: () => adjust(0, 2),
    m: () => work.toggleMap(), s: () => toggleOwn(!state.own), o: toggleLines,
    f: () => work.toggle(state.shown, "mark"), r: () => work.toggle(state.shown, "seen"),
    n: () => $("v-note").focus(),
  };
  const arrows = {
    ArrowLeft: () => pan(0.1, 0), ArrowRight: () => pan(-0.1, 0),
    ArrowUp: () => pan(0, 0.1), ArrowDown: () => pan(0, -0.1),
  };
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const target = event.target, writes = target === $("v-note");
    if (writes && (event.key === "Escape" || event.key === "Enter")) {
      event.preventDefault();
      stages[0].focus();
      return;
    }
    if (event.key === "z" && (event.ctrlKey || event.metaKey) && !writes) {
      event.preventDefault();
      work.undo();
      return;
    }
    if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = keys[event.key] || (target.type === "range" ? undefined : arrows[event.key]);
    if (!action) return;
    event.preventDefault();
    action();
  });
  const on = (id, act) => $(id).addEventListener("click", act);
  on("v-prev", () => step(-1));
  on("v-next", () => step(1));
  on("v-close", () => dialog.close());
  on("v-in", () => zoom(1.25));
  on("v-out", () => zoom(0.8));
  on("v-reset", reset);
  on("v-all", () => toggleOwn(false));
  on("v-own", () => toggleOwn(true));
  on("v-lines", toggleLines);
  on("v-mark", keys.f);
  on("v-seen", keys.r);
  on("v-undo", () => work.undo());
  $("v-opacity").addEventListener("input", (e) => work.setOpacity(Number(e.target.value)));
  $("v-window").addEventListener("input", (e) => adjust(Number(e.target.value) - state.window, 0));
  $("v-level").addEventListener("input", (e) => adjust(0, Number(e.target.value) - state.level));
  $("v-note").addEventListener("input", (e) => work.note(state.shown, e.target.value));
  $("v-note").addEventListener("focus", () => work.startNote(state.shown));
  dialog.addEventListener("close", () => work.closed(state.position));
  new ResizeObserver(() => { if (dialog.open) fit(); }).observe(dialog);

  return { open, status: () => { if (dialog.open) status(); }, isOpen: () => dialog.open };
}
