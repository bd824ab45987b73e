  // ---- pictures: each is decoded when it is first seen
  const source = (reference) =>
    typeof reference === "number" ? `data:image/webp;base64,${data.pictures[reference]}` : "";
  const file = (reference) => (typeof reference === "number" ? data.names[reference] : data.files[reference]);
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        load(entry.target);
      }
    },
    { rootMargin: "400px" },
  );
  function load(image) {
    seen.unobserve(image);
    image.src = source(Number(image.dataset.picture));
  }
  addEventListener("beforeprint", () => all("img[data-picture]:not([src])").forEach(load)); // paper shows all of them
  const picture = (reference, alt) => {
    if (typeof reference !== "number") return element("a", { href: file(reference), target: "_blank", textContent: say("file") });
    const image = element("img", { alt, decoding: "async" });
    image.dataset.picture = reference;
    seen.observe(image);
    return image;
  };

  // ---- the grid: four axes, of which two lie on the page
  const names = ["prompt", "model", "sampler", "seed"];
  const groupName = (prompt) => (prompt.ring === null ? prompt.group : `${say("ring")} ${say(`ring.${prompt.group}`)}`);
  const labelsNow = () => ({
    prompt: data.prompts.map((prompt) => `${groupName(prompt)}: ${prompt.text}`),
    model: data.models.map((model) => model.label),
    sampler: data.samplings,
    seed: data.seeds.map((seed) => say("seed.of", { seed })),
  });
  let labels = labelsNow();
  const keyOf = (place) => names.map((name) => place[name]).join(" ");
  const seedPlace = new Map(data.seeds.map((seed, number) => [seed, number]));
  const cells = new Map();
  for (const [model, prompt, sampler, seed, reference, isCopy] of data.cells)
    cells.set(keyOf({ prompt, model, sampler, seed: seedPlace.get(seed) }), { reference, isCopy });
  const cellAt = (place) =>
    cells.get(keyOf(place)) ?? (data.models[place.model].isReal ? cells.get(keyOf({ ...place, sampler: 0 })) : undefined);

  const state = { rows: "prompt", columns: "model", at: { prompt: 0, model: 0, sampler: 0, seed: 0 }, group: "" };
  const groups = new Map(data.prompts.map((prompt) => [prompt.group, prompt]));
  const axes = get("axes");

  const choice = (id, label, options, value, changed) => {
    const select = element("select", { id });
    options.forEach(([key, text]) => select.append(element("option", { value: key, textContent: text, selected: String(key) === String(value) })));
    select.addEventListener("change", () => changed(select.value));
    return element("label", {}, `${label} `, select);
  };
  const shorten = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

  function drawAxes() {
    const usable = names.filter((name) => labels[name].length > 1 || name === "prompt" || name === "model");
    const active = document.activeElement && document.activeElement.id;
    axes.replaceChildren(
      choice("axis-rows", say("axes.rows"), usable.map((n) => [n, say(n)]), state.rows, (value) => {
        if (value === state.columns) state.columns = state.rows;
        state.rows = value;
        draw();
      }),
      choice("axis-columns", say("axes.columns"), usable.map((n) => [n, say(n)]), state.columns, (value) => {
        if (value === state.rows) state.rows = state.columns;
        state.columns = value;
        draw();
      }),
    );
    if (groups.size > 1) {
      const options = [["", say("all")], ...[...groups].map(([group, prompt]) => [group, groupName(prompt)])];
      axes.append(choice("axis-group", say("prompts"), options, state.group, (value) => {
        state.group = value;
        draw();
      }));
    }
    for (const name of usable) {
      if (name === state.rows || name === state.columns) continue;
      const options = labels[name].map((text, number) => [number, shorten(text)]);
      axes.append(choice(`axis-${name}`, say(name), options, state.at[name], (value) => {
        state.at[name] = Number(value);
        draw();
      }));
    }
    if (active && get(active)) get(active).focus();
  }

  function values(name) {
    const every = labels[name].map((_, number) => number);
    if (name === "prompt" && state.group) return every.filter((n) => data.prompts[n].group === state.group);
    return every;
  }

  function drawGrid() {
    const columns = values(state.columns);
    const head = element("tr", {}, element("th", { scope: "col", textContent: say(state.rows) }));
    columns.forEach((c) => head.append(element("th", { scope: "col", textContent: labels[state.columns][c] })));
    const body = element("tbody");
    let first = true;
    for (const r of values(state.rows)) {
      const row = element("tr");
      const title = element("th", { scope: "row", textContent: labels[state.rows][r] });
      if (state.rows === "prompt") describe(title, data.prompts[r]);
      row.append(title);
      for (const c of columns) {
        const place = { ...state.at, [state.rows]: r, [state.columns]: c };
        const found = cellAt(place);
        const holder = element("td");
        if (!found) holder.append(element("span", { className: "cell empty", textContent: data.models[place.model].isReal ? "–" : say("cell.empty") }));
        else holder.append(cellButton(place, found, first));
        if (found) first = false;
        row.append(holder);
      }
      body.append(row);
    }
    get("grid").replaceChildren(element("thead", {}, head), body);
  }

  function describe(title, prompt) {
    title.textContent = prompt.text;
    const notes = [prompt.ring === null ? prompt.group : say("ring.of", { ring: { t: `ring.${prompt.group}` } })];
    if (prompt.negative) notes.push(say("prompt.negative", { words: prompt.negative }));
    if (prompt.base !== prompt.text) notes.push(say("prompt.base", { words: prompt.base }));
    if (prompt.cut) notes.push(say("prompt.cut", { tokens: prompt.cut }));
    title.append(element("small", { textContent: notes.join(" · ") }));
  }

  function cellButton(place, found, isFirst) {
    const said = names.map((name) => labels[name][place[name]]).join(", ");
    const button = element("button", { type: "button", className: "cell", tabIndex: isFirst ? 0 : -1 }, picture(found.reference, said));
    if (found.isCopy) button.append(element("span", { className: "badge", textContent: say("cell.copy") }));
    button.addEventListener("click", () => openViewer(place));
    return button;
  }

  get("grid").addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    let row = cell.parentElement.rowIndex;
    let column = cell.cellIndex;
    for (;;) {
      row += step[0];
      column += step[1];
      const next = get("grid").rows[row]?.cells[column];
      if (!next || row < 1 || column < 1) return;
      const button = next.querySelector("button");
      if (!button) continue;
      event.target.tabIndex = -1;
      button.tabIndex = 0;
      button.focus();
      return;
    }
  });

  function draw() {
    labels = labelsNow();
    drawAxes();
    drawGrid();
  }

  redraws.push(draw);

  // ---- the viewer: two models, one prompt and seed
  const viewer = get("viewer");
  let shown = null;
  let other = Math.max(0, data.models.findIndex((model) => model.isBase));
  let timer = 0;

  function openViewer(place) {
    shown = { ...place };
    showViewer();
    if (!viewer.open) viewer.showModal();
  }
  function showViewer() {
    const found = cellAt(shown);
    const beside = cellAt({ ...shown, model: other });
    const prompt = data.prompts[shown.prompt];
    get("viewer-title").textContent = prompt.text;
    const label = (model, cell) =>
      say(cell ? "viewer.image" : "viewer.missing", { model: labels.model[model], prompt: prompt.text, seed: data.seeds[shown.seed] });
    for (const [id, model, cell] of [["viewer-a", shown.model, found], ["viewer-b", other, beside]]) {
      const image = get(id);
      image.alt = label(model, cell);
      image.hidden = !cell || typeof cell.reference !== "number";
      if (!image.hidden) image.src = source(cell.reference);
      else image.removeAttribute("src");
    }
    get("viewer-b").hidden ||= other === shown.model;
    swap(false);
    const facts = [labels.model[shown.model], labels.sampler[shown.sampler], labels.seed[shown.seed]];
    if (prompt.negative) facts.push(say("prompt.negative", { words: prompt.negative }));
    get("viewer-facts").textContent = say("viewer.facts", { facts: facts.join(" · "), other: labels.model[other] });
    get("viewer-file").href = found ? file(found.reference) : "";
    get("viewer-other").replaceChildren(
      ...data.models.map((model, number) => element("option", { value: number, textContent: model.label, selected: number === other })),
    );
  }
  let swapped = false;
  function swap(to) {
    swapped = to;
    get("viewer-wipe").value = to ? 0 : 100;
    wipe();
  }
  function wipe() {
    const share = Number(get("viewer-wipe").value);
    // the second image lies above the first, and is cut from the left
    get("viewer-b").style.clipPath = `inset(0 0 0 ${share}%)`;
  }
  function flicker(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => swap(!swapped), 500) : 0;
    get("viewer-flicker").setAttribute("aria-pressed", String(on));
  }
  get("viewer-wipe").addEventListener("input", wipe);
  get("viewer-flicker").addEventListener("click", () => flicker(!timer));
  get("viewer-close").addEventListener("click", () => viewer.close());
  get("viewer-other").addEventListener("change", (event) => {
    other = Number(event.target.value);
    showViewer();
  });
  viewer.addEventListener("close", () => flicker(false));
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT"].includes(event.target.tagName)) return;
    const moves = { ArrowLeft: ["columns", -1], ArrowRight: ["columns", 1], ArrowUp: ["rows", -1], ArrowDown: ["rows", 1] };
    if (moves[event.key]) {
      event.preventDefault();
      const [side, step] = moves[event.key];
      const name = state[side];
      const every = values(name);
      for (let at = every.indexOf(shown[name]) + step; at >= 0 && at < every.length; at += step) {
        if (!cellAt({ ...shown, [name]: every[at] })) continue;
        shown[name] = every[at];
        showViewer();
        return;
      }
    } else if (event.key === " " && event.target.tagName !== "BUTTON") {
      event.preventDefault();
      swap(!swapped);
    } else if (event.key === "f") flicker(!timer);
  });

  // ---- forgetting and copies
  function pairs(box, list) {
    box.replaceChildren(...list);
    if (!list.length) box.append(element("p", { className: "note", textContent: say("nothing") }));
  }
  function pair(parts, caption) {
    const images = element("div");
    for (const [reference, title, alt] of parts)
      images.append(element("div", {}, picture(reference, alt), element("span", { textContent: title })));
    return element("figure", { className: "pair" }, images, element("figcaption", { textContent: caption }));
  }
  function modelSelect(id, list) {
    const select = get(id);
    [...new Set(list.map((each) => each.model))].forEach((model) =>
      select.append(element("option", { value: model, textContent: data.models[model].label })),
    );
    if (select.options.length) select.selectedIndex = select.options.length - 1;
    return select;
  }
  if (get("drifted")) {
    const model = modelSelect("drift-model", data.drifted);
    const ring = get("drift-ring");
    const show = () =>
      pairs(get("drifted"), data.drifted
        .filter((each) => each.model === Number(model.value) && data.prompts[each.prompt].ring === Number(ring.value))
        .map((each) => {
          const text = data.prompts[each.prompt].text;
          const alt = (which) => say("pair.alt", { which: { t: which }, prompt: text });
          const parts = [[each.base_key, say("base"), alt("base")], [each.key, say("tuned"), alt("tuned")]];
          return pair(parts, say("forgetting.caption", { prompt: text, seed: each.seed, drift: each.distance.toFixed(2) }));
        }));
    const rings = new Set(data.drifted.map((each) => data.prompts[each.prompt].ring));
    if (!rings.has(Number(ring.value))) ring.value = String([...rings][0]);
    [model, ring].forEach((select) => select.addEventListener("change", show));
    redraws.push(show);
  }
  if (get("copied")) {
    const model = modelSelect("copy-model", data.copied);
    const show = () =>
      pairs(get("copied"), data.copied
        .filter((each) => each.model === Number(model.value))
        .map((each) => {
          const text = data.prompts[each.prompt].text;
          const parts = [
            [each.key, say("generated"), say("pair.alt", { which: { t: "generated" }, prompt: text })],
            [each.training_key, say("copies.training"), say("copies.nearest")],
            [each.difference_key, say("copies.difference"), say("copies.difference.alt")],
          ];
          const found = { prompt: text, seed: each.seed, ncc: each.ncc.toFixed(2), place: each.place, pose: each.pose };
          const said = [say("copies.caption", found)];
          if (each.shift_px.some((step) => step !== 0)) said.push(say("copies.moved", { shift: each.shift_px.join(", ") }));
          if (each.flagged) said.push(say("copies.flagged"));
          return pair(parts, said.join(" · "));
        }));
    model.addEventListener("change", show);
    redraws.push(show);
  }

  // ---- the trade-off: an image of the model at a mark, where the pointer or the focus is
  const peek = get("peek");
  let peeked = null;
  function showPeek(mark) {
    peeked = mark;
    get("peek-image").src = source(Number(mark.dataset.peek));
    get("peek-words").textContent = mark.getAttribute("aria-label");
    peek.hidden = false;
    placePeek();
  }
  function placePeek() {
    if (!peeked) return;
    const at = peeked.getBoundingClientRect();
    const [width, height, gap] = [peek.offsetWidth, peek.offsetHeight, 12];
    const isAbove = at.top > height + gap;
    peek.style.left = `${Math.min(Math.max(gap, at.left + at.width / 2 - width / 2), innerWidth - width - gap)}px`;
    peek.style.top = `${isAbove ? at.top - height - gap : at.bottom + gap}px`;
  }
  function hidePeek() {
    peeked = null;
    peek.hidden = true;
  }
  all("[data-peek]").forEach((mark) => {
    ["pointerenter", "focus"].forEach((name) => mark.addEventListener(name, () => showPeek(mark)));
    ["pointerleave", "blur"].forEach((name) => mark.addEventListener(name, hidePeek));
  });
  addEventListener("scroll", placePeek, { passive: true });
  addEventListener("keydown", (event) => event.key === "Escape" && hidePeek());
