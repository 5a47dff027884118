// The page of carp_nb.widget.MutationMap. Written by hand; everything it knows arrives as messages from the kernel, and it asks nobody else.

const LETTERS = "ACDEFGHIKLMNPQRSTVWY";     // columns of a row as it arrives
const ORDER = "GAVLIMPCFWYSTNQHKRDE";       // rows on screen: kinds of residue together
const ROW_OF = Object.fromEntries([...LETTERS].map((a, k) => [k, ORDER.indexOf(a)]));
const KINDS = [8, 11, 15, 18];              // lines after small and aliphatic, aromatic, polar, positive
const MASKED = 3, PALE = 0.5;               // the stage of a row that will not change; those before it are previews, and drawn so strongly
const ROW = 15, MARGIN = 42, TRACK = 46, HEAD = 30, OVERVIEW = 30;

// Red is less likely than the wild type, blue more likely; the middle colour is zero in both themes. Red and blue stay apart in all common kinds of colour blindness.
const STOPS = {
  light: [[103, 0, 31], [178, 24, 43], [244, 165, 130], [247, 247, 247], [146, 197, 222], [33, 102, 172], [5, 48, 97]],
  dark: [[255, 196, 168], [240, 118, 84], [140, 54, 40], [44, 44, 47], [36, 86, 140], [86, 156, 228], [182, 222, 255]],
};
const NOTHING = { light: [206, 206, 210], dark: [92, 92, 98] };   // not computed, not measured, or a residue such as X
const colour = (value, limit, theme) => {
  const stops = STOPS[theme], t = (Math.max(-1, Math.min(1, value / limit)) + 1) / 2 * (stops.length - 1);
  if (Number.isNaN(t)) return NOTHING[theme];
  const k = Math.min(stops.length - 2, Math.floor(t)), f = t - k;
  return stops[k].map((c, i) => Math.round(c + (stops[k + 1][i] - c) * f));
};
const css = c => `rgb(${c[0]},${c[1]},${c[2]})`;
const ink = c => (0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2] > 140 ? "#000" : "#fff");
const number = (x, digits = 2) => x === null || x === undefined || Number.isNaN(x) ? "…" : (x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);
const duration = s => s < 90 ? `about ${Math.max(5, 5 * Math.round(s / 5))} s` : s < 5400 ? `about ${Math.round(s / 60)} min` : `about ${(s / 3600).toFixed(1)} h`;
const signed = x => x === null || x === undefined || Number.isNaN(x) ? "…" : (x > 0 ? "+" : "") + number(x);
function chance(row, k) {   // of a residue among the 20, from the log-odds of its position; a row of 20 or more
  const odds = Array.from(row.subarray(0, 20)), most = Math.max(...odds);
  return Math.exp(row[k] - most) / odds.reduce((sum, x) => sum + Math.exp(x - most), 0);
}

// JupyterLab, VS Code, Colab and Sphinx each tell the theme in their own way; elsewhere it is that of the machine.
function isDark({ body, documentElement }) {
  const jupyter = body.dataset.jpThemeLight, code = body.dataset.vscodeThemeKind || body.className;
  if (jupyter) return jupyter === "false";
  if (/vscode-(light|high-contrast-light)/.test(code)) return false;
  if (/vscode-(dark|high-contrast)/.test(code)) return true;
  const said = documentElement.getAttribute("theme") || body.dataset.theme || documentElement.dataset.theme;
  if (said === "dark" || said === "light") return said === "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const ADAPT = "The model is trained for a few minutes on homologs of the protein, an alignment such as ColabFold, HHblits or carp-nb homologs write. The model before stays on offer above.";
const TEMPLATE = `
  <div class="cm-bar">
    <label>Protein <select data-is="protein"></select></label>
    <label>Model <select data-is="model"></select></label>
    <label>First residue is number <input data-is="offset" type="number" step="1"></label>
    <button data-is="other" aria-expanded="false">Own sequence or saved state …</button>
  </div>
  <div class="cm-open" data-is="drawer" hidden>
    <textarea data-is="paste" rows="4" spellcheck="false" aria-label="Sequence, FASTA record or state string" placeholder="Paste residues, a FASTA record, or a state string"></textarea>
    <button data-is="openit" class="cm-main">Open</button>
  </div>
  <div class="cm-error" data-is="error" role="alert" hidden></div>
  <div class="cm-progress" data-is="progress"><div class="cm-rail"><div data-is="fill"></div></div><span data-is="count"></span><button data-is="cancel">Cancel</button></div>
  <div class="cm-trust" data-is="trust" title="How far this model has agreed with experiments, from what is recorded. A mean over other proteins does not say how good it is for this one."></div>
  <div class="cm-body">
    <div class="cm-left" data-is="left">
      <canvas data-is="overview" class="cm-overview" role="img" aria-label="Mean effect along the whole protein; drag the window"></canvas>
      <canvas data-is="map" class="cm-map" tabindex="0" role="application" aria-label="Mutation map. Arrows move, Enter adds or takes back a mutation, Escape leaves, plus and minus zoom, F freezes a position."></canvas>
      <div class="cm-status"><span data-is="status" aria-live="polite"></span><span class="cm-zoom"><button data-is="out" aria-label="zoom out">−</button><button data-is="all">All</button><button data-is="in" aria-label="zoom in">+</button></span></div>
      <canvas data-is="legend" class="cm-legend" role="img" aria-label="Colour scale: red less likely than the wild type, blue more likely, the middle colour equal"></canvas>
      <div class="cm-keys">Arrows move · Enter adds or takes back · Esc leaves · + − zoom · F freezes · Ctrl+Z undoes · drag pans</div>
      <div data-is="structurebox" hidden><div class="cm-title" data-is="structuretitle"></div><div data-is="structure" class="cm-structure" role="img" aria-label="Structure coloured by mean effect; drag to turn"></div></div>
    </div>
    <div class="cm-right">
      <div class="cm-title">Mutant</div>
      <input data-is="mutant" class="cm-mutant" spellcheck="false" aria-label="Mutant, such as A24C:D30E; Enter sets it" placeholder="A24C:D30E, then Enter">
      <div class="cm-chips" data-is="chips"></div>
      <div class="cm-row"><button data-is="undo">Undo</button><button data-is="redo">Redo</button><button data-is="reset">Reset</button></div>
      <table class="cm-numbers"><tbody data-is="numbers"></tbody></table>
      <div class="cm-title">Best additions <span class="cm-switch" role="group" aria-label="Effects given"><button data-is="givenwt">given the wild type</button><button data-is="givenmut">given this mutant</button></span></div>
      <div class="cm-thin"><div data-is="givenfill"></div></div>
      <div class="cm-additions" data-is="additions"></div>
      <details><summary>Frozen positions and allowed residues</summary>
        <label class="cm-wide">Frozen <input data-is="frozen" spellcheck="false" placeholder="24-30, 41"></label>
        <div class="cm-letters" data-is="letters" role="group" aria-label="Allowed residues"></div>
      </details>
      <details data-is="adaptbox"><summary>Adapt to the family of this protein</summary>
        <label class="cm-wide">Homologs <input data-is="family" spellcheck="false" placeholder="family.a3m, the protein first"></label>
        <div class="cm-row"><button data-is="adapt">Adapt</button><button data-is="upload">Adapt to a file from this computer …</button></div>
        <input data-is="file" type="file" accept=".a3m,.a2m,.fasta,.fa,.sto,.stockholm,.txt" hidden>
        <div class="cm-thin"><div data-is="adaptfill"></div></div>
        <div class="cm-note" data-is="adaptnote">${ADAPT}</div>
      </details>
      <details data-is="sequencebox"><summary>Sequence</summary><div class="cm-sequence" data-is="sequence"></div></details>
      <div class="cm-title">Export</div>
      <div class="cm-row"><button data-is="csv">CSV</button><button data-is="fasta">FASTA</button><button data-is="png">PNG</button><button data-is="svg">SVG</button><button data-is="html" title="the map as a page to send: it needs no Python and no network">HTML</button><button data-is="copy">Copy state</button></div>
    </div>
  </div>`;

function render({ model, el }) {
  const root = element("div", { className: "cm-root" });
  root.setAttribute("data-lm-suppress-shortcuts", "true");   // JupyterLab's own keys stay out
  root.innerHTML = TEMPLATE;
  el.append(root);
  const $ = {};
  for (const part of root.querySelectorAll("[data-is]")) $[part.dataset.is] = part;

  // ---- is anybody there? -----------------------------------------------------------------------------------------------------------------
  // Every message is answered. A page outlives its kernel: then it must say so instead of waiting for ever.
  const GONE = "The kernel is gone: run the cell again.", SILENT = "No answer from the kernel: it is busy with another cell, or gone. If this stays, run the cell again.";
  const PATIENCE = 8000, WATCH = 20000;      // milliseconds until an answer is missed, and until a page that waits for results asks
  let gone = false, silence = null, watch = null, doubt = null, heardAt = 0;
  function say(word, ...words) {
    if (gone) return;
    try { model.send({ do: word, with: words }); } catch (error) { console.warn(error); lose(true); return; }
    silence ??= setTimeout(() => { if (!gone) { root.dataset.life = "silent"; complain(SILENT); } }, PATIENCE);
  }
  function heard() {
    clearTimeout(silence); clearTimeout(watch); clearTimeout(doubt); silence = null; heardAt = Date.now();
    if (gone) lose(false);
    if (root.dataset.life === "silent") complain("");
    root.dataset.life = now ? "open" : "starting";
    watch = setTimeout(() => { if (now && now.busy) say("ping"); }, WATCH);
  }
  function lose(is) {
    if (is === gone) return;
    gone = is; root.dataset.life = gone ? "gone" : "silent";
    for (const part of root.children) if (part !== $.error) part.inert = gone;
    clearTimeout(silence); clearTimeout(watch); silence = null;
    complain(gone ? GONE : "");
    if (gone) $.count.textContent = "the kernel is gone";
    else say("hello");
  }
  const lookForKernel = () => setTimeout(() => lose(Boolean(el.closest(".jupyter-widgets-disconnected"))), 0);   // the class is set after the event
  // Some views never get that class. Whoever does not answer after the connection has changed is gone.
  function doubtKernel() {
    lookForKernel();
    say("ping");
    clearTimeout(doubt);
    doubt = setTimeout(() => lose(true), PATIENCE);
  }
  root.dataset.life = "starting";
  $.count.textContent = "starting …";
  root.addEventListener("pointerenter", () => { if (now && Date.now() - heardAt > 5000) say("ping"); });

  let protein = null, now = null, rows = null, known = null, measured = null, structure = null;
  let pixels = null, measuredPixels = null, meanLimit = 1;
  let first = 0, width = 20, whole = true, cursor = null, hover = null, theme = "light", drawing = false, structureTimer = null;
  let entropyRange = Math.log2(20);

  // ---- colours and sizes -------------------------------------------------------------------------------------------------------------
  const style = name => getComputedStyle(root).getPropertyValue(name).trim();
  const readTheme = () => {
    theme = isDark(document) ? "dark" : "light";
    root.dataset.theme = theme;
  };
  const length = () => protein ? protein.wild_type.length : 0;
  const inner = () => Math.max(200, $.left.clientWidth - MARGIN - 4);
  const least = () => Math.min(26, inner() / Math.max(1, length()));
  const shown = () => Math.min(length(), inner() / width);
  const mapTop = TRACK + HEAD, mapBottom = mapTop + 20 * ROW;
  let measuredTitle = [], measuredTop = mapBottom + 26;
  const height = () => (protein && protein.measured ? measuredTop + 20 * ROW : mapBottom) + 6;
  function wrap(g, text, room) {   // lines of words that fit
    const lines = [];
    for (const word of text.split(" ")) {
      const longer = lines.length ? lines.at(-1) + " " + word : word;
      if (lines.length && g.measureText(longer).width <= room) lines[lines.length - 1] = longer; else lines.push(word);
    }
    return lines;
  }
  function titleMeasurements() {
    const g = $.map.getContext("2d"), found = now.agreement;
    g.font = "11px sans-serif";
    const agreement = found ? ` Spearman ${number(found[0])} (95 % ${number(found[1])} to ${number(found[2])}), n\u00a0=\u00a0${found[3].toLocaleString("en")} single mutants.` : "";
    measuredTitle = wrap(g, "Measured, higher is fitter; the middle colour is the median." + agreement, inner());
    measuredTop = mapBottom + 12 + 14 * measuredTitle.length;
  }

  function fit(canvas, w, h) {
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
      canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale);
      canvas.style.width = w + "px"; canvas.style.height = h + "px";
    }
    const g = canvas.getContext("2d");
    g.reset();   // a drawing that failed half way leaves its clip behind
    g.setTransform(scale, 0, 0, scale, 0, 0); g.clearRect(0, 0, w, h);
    g.font = "11px " + (style("--cm-font") || "sans-serif"); g.textBaseline = "middle";
    return g;
  }

  function view(start, cell) {
    width = Math.max(least(), Math.min(28, cell));
    whole = width <= least() + 1e-9;
    first = Math.max(0, Math.min(length() - inner() / width, start));
    if (inner() / width >= length()) first = 0;
    draw();
  }
  function zoom(factor, at = cursor ? cursor.i : first + shown() / 2) {
    const cell = Math.max(least(), Math.min(28, width * factor));
    view(at + 0.5 - (at + 0.5 - first) * width / cell, cell); looked();
  }
  let lookTimer = null;
  const looked = () => { clearTimeout(lookTimer); lookTimer = setTimeout(() => say("look", Math.floor(first)), 150); };

  // ---- the image: one pixel per cell ---------------------------------------------------------------------------------------------------
  function paint(canvas, value, limit, only, solid = () => true) {
    const g = canvas.getContext("2d");
    const image = only ? null : g.createImageData(length(), 20);
    const column = only ? g.createImageData(1, 20) : null;
    for (const i of only || Array(length()).keys()) {
      for (let k = 0; k < 20; k++) {
        (image || column).data.set([...colour(value(i, k), limit, theme), solid(i) ? 255 : PALE * 255], image ? 4 * (ROW_OF[k] * length() + i) : 4 * ROW_OF[k]);
      }
      if (only) g.putImageData(column, i, 0);
    }
    if (image) g.putImageData(image, 0, 0);
  }
  const at = (i, k) => known && known[i] ? rows[22 * i + k] : NaN;
  const isPreview = i => known[i] > 0 && known[i] < MASKED;
  const hasMean = i => known[i] && !Number.isNaN(rows[22 * i + 20]);   // X, B, U, Z ... have none
  function repaint(only) {
    if (!protein) return;
    if (!pixels || pixels.width !== length()) { pixels = element("canvas", { width: length(), height: 20 }); only = null; }
    paint(pixels, at, now ? now.limit : 1, only, i => !isPreview(i));
    if (measured && !only) {
      measuredPixels = element("canvas", { width: length(), height: 20 });
      paint(measuredPixels, (i, k) => LETTERS[k] === protein.wild_type[i] ? 0 : measured[20 * i + k], 1, null);
    }
    const means = []; for (let i = 0; i < length(); i++) if (hasMean(i)) means.push(Math.abs(rows[22 * i + 20]));
    means.sort((a, b) => a - b);
    meanLimit = means.length ? Math.max(means[Math.floor(0.95 * (means.length - 1))], 0.01) : 1;   // a first methionine would pale all others
  }

  // ---- drawing -------------------------------------------------------------------------------------------------------------------------
  function guarded(act) {   // one drawing that fails is told and stops no other
    try { act(); }
    catch (error) { console.error(error); complain(`The page could not draw this: ${error.message}. Please report it.`); }
  }
  function draw() {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => { 
      drawing = false;
      if (!pixels || !root.isConnected || !$.left.clientWidth) return;
      for (const part of [drawMap, drawOverview, drawLegend, markStructure, tell]) guarded(part);
    });
  }

  function drawMap() {
    if (measured) titleMeasurements();
    const w = MARGIN + inner(), g = fit($.map, w, height()), L = length();
    const text = style("--cm-text"), faint = style("--cm-faint"), line = style("--cm-line"), accent = style("--cm-accent");
    const from = Math.max(0, Math.floor(first)), to = Math.min(L, Math.ceil(first + inner() / width));
    const x = i => MARGIN + (i - first) * width, right = Math.min(w, x(L));
    g.save(); g.beginPath(); g.rect(MARGIN, 0, inner(), height()); g.clip();
    // tracks
    const middle = 12, half = 11;
    for (let i = from; i < to; i++) if (hasMean(i)) {
      const mean = rows[22 * i + 20], h = Math.max(0.5, Math.min(1, Math.abs(mean) / meanLimit) * 20);
      g.fillStyle = css(colour(Math.sign(mean) * Math.max(Math.abs(mean), 0.25 * now.limit), now.limit, theme));
      g.globalAlpha = isPreview(i) ? PALE : 1;
      g.fillRect(x(i), 2, Math.max(width - (width > 4 ? 1 : 0), 0.7), h);
    }
    g.globalAlpha = 1;
    g.beginPath(); g.strokeStyle = text; g.lineWidth = 1.2; let open = false;
    for (let i = from; i < to; i++) {
      if (!known[i] || Number.isNaN(rows[22 * i + 21])) { open = false; continue; }
      const y = TRACK - 3 - rows[22 * i + 21] / entropyRange * 18;
      open ? g.lineTo(x(i) + width / 2, y) : g.moveTo(x(i) + width / 2, y); open = true;
    }
    g.stroke();
    // numbers and letters
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find(s => s * width >= 44) || 1000;
    const numbered = []; for (let i = from; i < to; i++) if ((i + now.offset) % step === 0) numbered.push(i);
    if (!numbered.length) numbered.push(from);
    g.textAlign = "center"; g.fillStyle = faint;
    for (const i of numbered) g.fillRect(x(i) + width / 2 - 0.5, TRACK + 14, 1, 2);
    if (width >= 8) {
      g.font = `${width >= 11 ? 12 : 10}px ${style("--cm-code") || "monospace"}`; g.fillStyle = text;
      for (let i = from; i < to; i++) g.fillText(protein.wild_type[i], x(i) + width / 2, TRACK + 23);
    }
    // maps
    g.imageSmoothingEnabled = width < 1;
    g.drawImage(pixels, 0, 0, L, 20, x(0), mapTop, L * width, 20 * ROW);
    if (measured) g.drawImage(measuredPixels, 0, 0, L, 20, x(0), measuredTop, L * width, 20 * ROW);
    const frozen = new Set(now.frozen_at), allowed = new Set(now.allowed);
    for (const top of measured ? [mapTop, measuredTop] : [mapTop]) {
      if (width >= 6) {
        g.strokeStyle = style("--cm-grid"); g.lineWidth = 1; g.beginPath();
        for (let i = from; i <= to; i++) { g.moveTo(x(i), top); g.lineTo(x(i), top + 20 * ROW); }
        for (let r = 0; r <= 20; r++) { g.moveTo(x(from), top + r * ROW); g.lineTo(right, top + r * ROW); }
        g.stroke();
      }
      g.fillStyle = style("--cm-back");
      for (const r of KINDS) g.fillRect(x(from), top + r * ROW - 1, right - x(from), 2);
      if (width >= 3) for (let i = from; i < to; i++) {   // the wild type
        const r = ORDER.indexOf(protein.wild_type[i]); if (r < 0) continue;
        g.fillStyle = theme === "dark" ? "#fff" : "#000"; g.beginPath();
        g.arc(x(i) + width / 2, top + (r + 0.5) * ROW, Math.min(3, width / 3.2), 0, 7); g.fill();
      }
    }
    // what may not be changed
    g.globalAlpha = 0.72; g.fillStyle = style("--cm-back");
    [...ORDER].forEach((a, r) => { if (!allowed.has(a)) g.fillRect(x(from), mapTop + r * ROW, right - x(from), ROW); });
    g.globalAlpha = 1; g.strokeStyle = text; g.lineWidth = 0.7;
    for (let i = from; i < to; i++) if (frozen.has(i)) {
      g.globalAlpha = 0.6; g.fillStyle = style("--cm-back"); g.fillRect(x(i), mapTop, width, 20 * ROW); g.globalAlpha = 1;
      g.save(); g.beginPath(); g.rect(x(i), mapTop, width, 20 * ROW); g.clip(); g.beginPath();
      for (let y = mapTop - width; y < mapBottom; y += 7) { g.moveTo(x(i), y + width); g.lineTo(x(i) + width, y); }
      g.stroke(); g.restore();
    }
    // the mutant, and the cursor
    for (const [i, k] of now.cells) {
      if (i < from || i >= to) continue;
      const r = ROW_OF[k], wide = Math.max(width, 5), left = x(i) + width / 2 - wide / 2;
      for (const [grow, thick, paintOf] of [[1, 4, style("--cm-back")], [1, 2, accent]]) { g.strokeStyle = paintOf; g.lineWidth = thick; g.strokeRect(left - grow, mapTop + r * ROW - grow, wide + 2 * grow, ROW + 2 * grow); }
      if (width >= 9) { const v = at(i, k); g.fillStyle = Number.isNaN(v) ? text : ink(colour(v, now.limit, theme)); g.font = "bold 11px sans-serif"; g.fillText(LETTERS[k], x(i) + width / 2, mapTop + (r + 0.5) * ROW + 0.5); }
      g.fillStyle = accent; g.beginPath(); g.moveTo(x(i) + width / 2 - 4, mapTop - 1); g.lineTo(x(i) + width / 2 + 4, mapTop - 1); g.lineTo(x(i) + width / 2, mapTop + 5); g.fill();
    }
    const spot = hover || cursor;
    if (spot) for (const top of measured ? [mapTop, measuredTop] : [mapTop]) {
      g.lineWidth = 1.5; g.strokeStyle = text; g.setLineDash(hover ? [] : [3, 2]);
      const wide = Math.max(width, 4); g.strokeRect(x(spot.i) + width / 2 - wide / 2, top + spot.r * ROW, wide, ROW); g.setLineDash([]);
    }
    g.restore();
    // numbers stay whole at both ends
    g.textAlign = "center"; g.fillStyle = faint;
    for (const i of numbered) { const text = String(i + now.offset), half = g.measureText(text).width / 2; g.fillText(text, Math.max(MARGIN + half - 6, Math.min(w - half, x(i) + width / 2)), TRACK + 8); }
    // letters on the left
    g.textAlign = "center"; g.font = `11px ${style("--cm-code") || "monospace"}`;
    for (const top of measured ? [mapTop, measuredTop] : [mapTop]) [...ORDER].forEach((a, r) => { g.fillStyle = spot && spot.r === r ? accent : allowed.has(a) ? text : faint; g.fillText(a, MARGIN - 10, top + (r + 0.5) * ROW); });
    g.fillStyle = faint; g.font = "9px sans-serif"; g.textAlign = "right";
    g.fillText("mean", MARGIN - 4, 7); g.fillText("effect", MARGIN - 4, 17); g.fillText("entropy", MARGIN - 2, 36);
    if (measured) {
      g.textAlign = "left"; g.font = "11px sans-serif"; g.fillStyle = text;
      measuredTitle.forEach((line, n) => g.fillText(line, MARGIN, mapBottom + 13 + 14 * n));
    }
  }

  function drawOverview() {
    const all = shown() >= length() - 0.01;
    $.overview.hidden = all;
    if (all) return;
    const w = MARGIN + inner(), g = fit($.overview, w, OVERVIEW), scale = inner() / length(), columns = Math.floor(inner());
    for (let c = 0; c < columns; c++) {   // the mean over the positions behind one column of pixels
      let sum = 0, n = 0;
      for (let i = Math.floor(c / scale); i < Math.max(Math.floor(c / scale) + 1, (c + 1) / scale) && i < length(); i++) if (hasMean(i)) { sum += rows[22 * i + 20]; n++; }
      g.fillStyle = n ? css(colour(sum / n, Math.max(meanLimit, 0.01), theme)) : style("--cm-line");
      g.fillRect(MARGIN + c, 6, c < columns - 1 ? 1.6 : 1, OVERVIEW - 12);
    }
    g.fillStyle = style("--cm-accent");
    for (const [i] of now.cells) g.fillRect(MARGIN + i * scale - 1, 1, 3, 5);
    g.strokeStyle = style("--cm-text"); g.lineWidth = 2;
    g.strokeRect(MARGIN + first * scale + 1, 4, Math.max(4, shown() * scale - 2), OVERVIEW - 8);
  }

  function drawLegend() {
    const room = MARGIN + inner(), g = fit($.legend, room, 34), limit = now.limit, less = "less likely";
    g.font = "11px sans-serif";
    const wide = text => g.measureText(text).width, left = MARGIN + wide(less) + 8;
    const more = ["more likely than the wild type", "more likely"].find(text => left + 116 + wide(text) <= room) || "";   // at least 100 pixels of colour
    const bar = Math.min(180, room - left - wide(more) - 16);
    $.legend.dataset.middle = left + bar / 2;
    for (let p = 0; p < bar; p++) { g.fillStyle = css(colour((p / (bar - 1) * 2 - 1) * limit, limit, theme)); g.fillRect(left + p, 4, p < bar - 1 ? 1.6 : 1, 10); }
    g.fillStyle = style("--cm-text"); g.textAlign = "center";
    g.fillText("−" + limit, left, 24); g.fillText("0", left + bar / 2, 24); g.fillText("+" + limit, left + bar, 24);
    g.fillStyle = style("--cm-faint"); g.textAlign = "right"; g.fillText(less, left - 8, 9); g.fillText("nats", left - 16, 24);
    g.textAlign = "left"; g.fillText(more, left + bar + 8, 9);
  }

  // The ribbon is laid anew when its colours change, at most three times a second; the marks of the mutant and of the cursor move at once.
  function paintStructure() {
    if (!structure || structureTimer || !now) return;
    structureTimer = setTimeout(() => {
      structureTimer = null;
      if (!structure || !root.isConnected) return;
      const means = Array.from(known, (is, i) => is ? rows[22 * i + 20] : NaN), hex = c => "#" + c.map(x => x.toString(16).padStart(2, "0")).join("");
      $.structuretitle.textContent = `Structure, coloured by mean effect, full colour at ±${meanLimit.toFixed(1)} nats; drag to turn, Ctrl and the wheel to zoom`;
      structure.paint(means.map(mean => hex(colour(mean, meanLimit, theme))), now.cells.map(c => c[0]));
    }, 330);
  }
  let marked = "";
  function markStructure() {
    if (!structure) return;
    const spot = hover || cursor, residues = [...new Set([...now.cells.map(c => c[0]), ...(spot ? [spot.i] : [])])], key = `${residues} ${theme}`;
    if (key !== marked) structure.mark(residues, theme === "dark" ? "#ffc14d" : "#b35900");
    marked = key;
  }
  async function openStructure(pdb, library) {
    if (structure) structure.end();
    structure = null; marked = ""; $.structure.replaceChildren(); $.structurebox.hidden = !pdb;
    const asked = protein;
    const drawn = pdb && await cartoon($.structure, pdb, library);
    if (asked !== protein) return drawn && drawn.end();   // another protein has been opened meanwhile
    structure = drawn || null;
    paintStructure(); draw();
  }

  // ---- words -----------------------------------------------------------------------------------------------------------------------------
  function tell() {
    const spot = hover || cursor;
    if (!spot) { $.status.textContent = `${length().toLocaleString("en")} residues, ${now.offset} to ${now.offset + length() - 1}`; return; }
    const wt = protein.wild_type[spot.i], letter = ORDER[spot.r], k = LETTERS.indexOf(letter), v = at(spot.i, k), name = `${wt}${spot.i + now.offset}${letter}`;
    const mean = hasMean(spot.i) ? `; position: mean effect ${number(rows[22 * spot.i + 20])} nats, entropy ${number(rows[22 * spot.i + 21])} bits` : "";
    const value = wt === letter ? "the wild type" : !known[spot.i] ? "not computed yet" : Number.isNaN(v) ? `has no odds: ${wt} is none of the 20 amino acids` : `${signed(v)} nats`;
    const p = Number.isNaN(v) || !protein.probabilities ? "" : `, probability ${chance(rows.subarray(22 * spot.i, 22 * spot.i + 22), k).toPrecision(2)}`;
    $.status.textContent = `${name}  ${value}${p}${mean}${isPreview(spot.i) ? " (preview)" : ""}`;
  }

  function words() {
    if (document.activeElement !== $.mutant) $.mutant.value = now.n ? now.mutant : "";
    if (document.activeElement !== $.frozen) $.frozen.value = now.frozen;
    if (document.activeElement !== $.offset) $.offset.value = now.offset;
    $.chips.replaceChildren(...now.cells.map(([i, k]) => { const name = `${protein.wild_type[i]}${i + now.offset}${LETTERS[k]}`;
      return element("button", { className: "cm-chip", title: `take ${name} back`, onclick: () => say("remove", name) }, name, element("span", {}, "×")); }));
    const line = (label, value, unit, title) => element("tr", { title }, element("td", {}, label), element("td", {}, value), element("td", {}, unit));
    const partial = now.done < length() ? ` so far` : "";
    $.numbers.replaceChildren(
      line("Score", now.n ? signed(now.score) : "0.00", "nats", protein.unmasked ? "nothing masked" : "equation 1: all mutated positions masked at once"),
      line("Sum of single effects", now.n ? signed(now.sum) : "0.00", "nats", protein.unmasked ? "nothing masked" : "each position masked alone"),
      line("Difference", now.n ? signed(now.difference) : "0.00", "nats", "score less sum"),
      line("Percentile", now.n ? number(now.percentile, 1) : "–", `of ${now.singles.toLocaleString("en")} singles${partial}`, "share of the single mutants that score no higher"),
      ...(now.measured === null || !now.n ? [] : [line("Measured", signed(now.measured), "as in the scan", "the scan's own value of exactly this mutant")]));
    $.numbers.dataset.score = now.score === null ? "" : now.score; $.numbers.dataset.mutant = now.mutant;
    $.undo.disabled = !now.undo; $.redo.disabled = !now.redo; $.reset.disabled = !now.n;
    $.givenwt.setAttribute("aria-pressed", now.given !== "mutant"); $.givenmut.setAttribute("aria-pressed", now.given === "mutant");
    $.givenfill.style.width = now.given === "mutant" && now.given_done < 1 ? 100 * now.given_done + "%" : "0";
    const most = Math.max(...now.additions.map(a => Math.abs(a.effect)), 0.01);
    $.additions.replaceChildren(...now.additions.map(a => element("button", { className: "cm-addition", title: `add ${a.mutation}`, onclick: () => say("add", a.mutation) },
      element("span", {}, a.mutation), element("span", { className: "cm-barbox" }, element("span", { className: a.effect < 0 ? "cm-less" : "cm-more", style: `width:${100 * Math.abs(a.effect) / most}%` })), element("span", {}, signed(a.effect)))));
    const start = protein.wild_type[0];
    if (now.additions.length && start !== "M") $.additions.append(element("div", { className: "cm-note" }, `${start}${now.offset}M is not offered: whole proteins begin with M, so models put it first in any fragment.`));
    const waiting = now.given === "mutant" ? now.given_done < 1 : !now.done;
    if (!now.additions.length) $.additions.textContent = !waiting ? "nothing can be added" : now.cancelled ? "cancelled: Go on computes them" : "";
    for (const b of $.letters.children) b.setAttribute("aria-pressed", now.allowed.includes(b.textContent));
    const changed = new Set(now.cells.map(c => c[0]));
    $.sequence.replaceChildren(...(length() > 6000 ? [now.sequence] : [...now.sequence].map((a, i) => changed.has(i) ? element("mark", {}, a) : a)));
    const part = now.done / length();
    $.fill.style.width = 100 * part + "%"; $.progress.dataset.full = part === 1;
    const computed = part === 1 ? `${length().toLocaleString("en")} positions` : `${now.done.toLocaleString("en")} of ${length().toLocaleString("en")} positions`;
    const left = now.busy && !now.cancelled && now.seconds_left > 1 ? `, ${duration(now.seconds_left)} left` : "";
    $.count.textContent = computed + left + (known.some((_, i) => isPreview(i)) ? "; pale: preview" : "");
    $.count.title = known.some((_, i) => isPreview(i)) ? "Pale columns are a preview: one pass over the unmasked wild type. The final values replace them one by one; no score, list or export is taken from a preview." : "";
    $.cancel.hidden = part === 1 && !waiting && !now.cancelled; $.cancel.textContent = now.cancelled ? "Go on" : "Cancel";
    root.dataset.busy = now.busy;
  }
  function complain(text) { $.error.textContent = gone ? GONE : text; $.error.hidden = !$.error.textContent; }

  // ---- messages ----------------------------------------------------------------------------------------------------------------------------
  const asArray = (Kind, buffer) => new Kind(buffer.buffer ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer);
  function receive(message, buffers) { heard(); guarded(() => take(message, buffers)); if (now && !gone) root.dataset.life = "open"; }
  function take(message, buffers) {
    if (message.kind === "heard") return;
    if (message.kind === "error") { complain(message.text); $.count.textContent = $.count.textContent.replace(/^loading .*/, ""); if (protein) chosen(); return; }
    if (message.kind === "opening") { $.count.textContent = `loading ${message.text}`; return; }
    if (message.kind === "adapting") return adapting(message);
    if (message.kind === "adapted") return adapting(null);
    if (message.kind === "go") { cursor = { i: message.i, r: message.r }; hover = null; view(message.i + 0.5 - inner() / width / 2, width); $.map.focus(); return; }
    if (message.kind === "file") return save(message.name, buffers[0]);
    if (message.kind === "protein") {
      const other = !protein || protein.wild_type !== message.wild_type, fresh = other || protein.model !== message.model;
      protein = message; const parts = [...buffers];
      measured = message.measured ? asArray(Float32Array, parts.shift()) : null;
      rows = new Float32Array(22 * length()); known = new Uint8Array(length()); pixels = null;
      chosen();
      if (other || !message.structure || !structure) openStructure(...(message.structure ? parts : []));
      if (fresh) { first = 0; cursor = hover = null; width = 13; whole = false; }
      return;
    }
    if (!protein) return;
    const limit = now && now.limit; now = message;
    const places = asArray(Int32Array, buffers[0]), values = asArray(Float32Array, buffers[1]), stages = asArray(Uint8Array, buffers[2]);
    places.forEach((i, n) => { rows.set(values.subarray(22 * n, 22 * n + 22), 22 * i); known[i] = stages[n]; });
    repaint(limit === now.limit && pixels ? places : null);
    words(); view(first, width); paintStructure();
  }
  let inTraining = null;   // when it began
  function adapting(told) {   // null: it has ended, one way or another
    inTraining = told && (inTraining || Date.now());
    $.adapt.textContent = told ? "Stop" : "Adapt"; $.upload.disabled = $.family.disabled = Boolean(told);
    $.adaptfill.style.width = told && told.updates ? 100 * told.update / told.updates + "%" : "0";
    if (!told) { $.adaptnote.textContent = ADAPT; return; }
    if (!told.updates) { $.adaptnote.textContent = "reading the homologs …"; return; }
    const left = told.update > 2 ? `, ${duration((Date.now() - inTraining) / 1000 / told.update * (told.updates - told.update))} left` : "";
    $.adaptnote.textContent = `update ${told.update} of ${told.updates}, loss ${told.loss}${left}; scores wait meanwhile`;
  }
  const MOST = 50e6;   // bytes; a message of the kernel is limited, a file in its folder is not
  async function upload(file) {
    if (!file) return;
    if (file.size > MOST) return complain(`${file.name} is larger than 50 MB; put it where the kernel runs and write its path above.`);
    say("adapt", { name: file.name, text: await file.text() });
  }
  function choose(select, names, current, other) {
    const options = names.map(n => element("option", { value: n, title: n, selected: n === current }, n.split(/[\\/]/).pop()));
    if (!current) options.unshift(element("option", { value: "", selected: true }, other));
    select.replaceChildren(...options);
  }
  function chosen() {   // what is open, whatever was asked for
    $.trust.textContent = protein.trust || "";
    choose($.protein, protein.proteins, protein.proteins.includes(protein.label) ? protein.label : "", protein.label);
    choose($.model, protein.models, protein.model);
  }
  function save(name, buffer) {
    const link = element("a", { href: URL.createObjectURL(new Blob([asArray(Uint8Array, buffer)])), download: name });
    root.append(link); link.click(); link.remove(); setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // ---- hands -------------------------------------------------------------------------------------------------------------------------------
  function cell(event) {
    const box = $.map.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    const i = Math.floor(first + (px - MARGIN) / width);
    let r = Math.floor((py - mapTop) / ROW);
    if (r >= 20 && measured) r = Math.floor((py - measuredTop) / ROW);
    return px >= MARGIN && i >= 0 && i < length() && r >= 0 && r < 20 ? { i, r } : null;
  }
  const toggle = spot => { complain(""); say("toggle", spot.i + now.offset, ORDER[spot.r]); };
  let press = null;
  $.map.addEventListener("pointerdown", e => { if (e.button || !now) return; press = { x: e.clientX, first, moved: false, spot: cell(e) }; $.map.setPointerCapture(e.pointerId); $.map.focus({ preventScroll: true }); });
  $.map.addEventListener("pointermove", e => {
    if (!now) return;
    if (press && (press.moved || Math.abs(e.clientX - press.x) > 4)) { press.moved = true; hover = null; view(press.first - (e.clientX - press.x) / width, width); return; }
    hover = cell(e); draw();
  });
  $.map.addEventListener("pointerup", () => { if (press && !press.moved && press.spot) { cursor = press.spot; toggle(press.spot); } else if (press && press.moved) looked(); press = null; });
  $.map.addEventListener("pointerleave", () => { hover = null; draw(); });
  $.map.addEventListener("wheel", e => {
    if (!now) return;
    if (e.ctrlKey || e.metaKey) { e.preventDefault(); const spot = cell(e); zoom(Math.exp(-e.deltaY / 300), spot ? spot.i : undefined); }
    else if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) { e.preventDefault(); view(first + (e.deltaX || e.deltaY) / width, width); looked(); }
  }, { passive: false });
  const jump = e => { const box = $.overview.getBoundingClientRect(); view((e.clientX - box.left - MARGIN) / inner() * length() - shown() / 2, width); looked(); };
  $.overview.addEventListener("pointerdown", e => { $.overview.setPointerCapture(e.pointerId); jump(e); });
  $.overview.addEventListener("pointermove", e => { if (e.buttons) jump(e); });

  function move(di, dr) {
    const spot = cursor || { i: Math.floor(first + shown() / 2), r: 10 };
    cursor = { i: Math.max(0, Math.min(length() - 1, spot.i + di)), r: Math.max(0, Math.min(19, spot.r + dr)) }; hover = null;
    if (cursor.i < first) { view(cursor.i - 1, width); looked(); } else if (cursor.i + 1 > first + inner() / width) { view(cursor.i + 2 - inner() / width, width); looked(); } else draw();
  }
  const KEYS = {
    ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
    PageUp: () => move(-Math.floor(shown()), 0), PageDown: () => move(Math.floor(shown()), 0), Home: () => move(-length(), 0), End: () => move(length(), 0),
    Enter: () => cursor ? toggle(cursor) : move(0, 0), " ": () => cursor && toggle(cursor), Escape: () => { cursor = hover = null; $.map.blur(); draw(); },
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), "0": () => view(0, least()),
    f: () => { if (!cursor) return; const n = cursor.i + now.offset, is = now.frozen_at.includes(cursor.i);
      say("freeze", is ? now.frozen_at.filter(i => i !== cursor.i).map(i => i + now.offset).join(",") : [now.frozen, n].filter(t => t !== "").join(",")); },
  };
  $.map.addEventListener("keydown", e => {
    if (!now) return;
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    if ((e.ctrlKey || e.metaKey) && (key === "z" || key === "y")) { e.preventDefault(); say(key === "y" || e.shiftKey ? "redo" : "undo"); }
    else if (!e.ctrlKey && !e.metaKey && !e.altKey && KEYS[key]) { e.preventDefault(); KEYS[key](); }
  });
  root.addEventListener("keydown", e => e.stopPropagation());
  $.map.addEventListener("focus", () => { if (!cursor && !press && now) move(0, 0); });
  const onEnter = (input, act) => input.addEventListener("keydown", e => { if (e.key === "Enter") { complain(""); act(input.value); input.blur(); } if (e.key === "Escape") { input.blur(); words(); } });
  onEnter($.mutant, text => text.trim() ? say("set", text) : say("reset"));
  onEnter($.frozen, text => say("freeze", text));
  onEnter($.offset, text => say("renumber", text));
  $.offset.addEventListener("change", () => { if (now && $.offset.value !== String(now.offset)) say("renumber", $.offset.value); });
  const click = (name, act) => $[name].addEventListener("click", () => { complain(""); act(); });
  click("undo", () => say("undo")); click("redo", () => say("redo")); click("reset", () => say("reset"));
  click("givenwt", () => say("given", "wild type")); click("givenmut", () => say("given", "mutant"));
  click("cancel", () => say(now.cancelled ? "resume" : "cancel"));
  click("in", () => zoom(1.4)); click("out", () => zoom(1 / 1.4)); click("all", () => view(0, least()));
  for (const kind of ["csv", "fasta", "png", "svg", "html"]) click(kind, () => say("export", kind));
  click("copy", () => { navigator.clipboard && navigator.clipboard.writeText(now.state); $.drawer.hidden = false; $.paste.value = now.state; $.paste.select(); });
  click("adapt", () => inTraining ? say("stop") : say("adapt", { path: $.family.value }));
  onEnter($.family, text => inTraining || say("adapt", { path: text }));
  click("upload", () => $.file.click());
  $.file.addEventListener("change", () => { upload($.file.files[0]); $.file.value = ""; });
  click("other", () => { $.drawer.hidden = !$.drawer.hidden; $.other.setAttribute("aria-expanded", !$.drawer.hidden); if (!$.drawer.hidden) $.paste.focus(); });
  const HEAD_OF_STATE = "carp-nb-mutant-";
  click("openit", () => { const text = $.paste.value.trim(); say("open", text.startsWith(HEAD_OF_STATE) ? { state: text } : { sequence: text, offset: $.offset.value || 1 }); });
  $.protein.addEventListener("change", () => { complain(""); if ($.protein.value) say("open", { sequence: $.protein.value }); });
  $.model.addEventListener("change", () => { complain(""); say("open", { model: $.model.value }); });
  $.letters.append(...[...ORDER].map(a => element("button", { onclick: () => say("allow", now.allowed.includes(a) ? now.allowed.replace(a, "") : now.allowed + a) }, a)));

  // ---- life --------------------------------------------------------------------------------------------------------------------------------
  const redress = () => { readTheme(); repaint(); draw(); paintStructure(); };
  const themed = new MutationObserver(() => { redress(); setTimeout(redress, 400); });   // the attribute changes before the style sheet has arrived
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind", "data-theme", "class"] });
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ["theme", "data-theme"] });
  const machine = matchMedia("(prefers-color-scheme: dark)");
  machine.addEventListener("change", redress);
  const sized = new ResizeObserver(() => { if (now) view(first, whole ? 0 : width); });   // what was seen whole stays whole
  sized.observe($.left);
  readTheme();
  model.on("msg:custom", receive);
  model.on("comm_live_update", doubtKernel);   // JupyterLab and others tell when the connection ends
  model.on("comm:close", doubtKernel);
  say("hello");
  lookForKernel();
  return () => { model.off("msg:custom", receive); model.off("comm_live_update", doubtKernel); model.off("comm:close", doubtKernel); clearTimeout(silence); clearTimeout(watch); clearTimeout(doubt); themed.disconnect(); machine.removeEventListener("change", redress); sized.disconnect(); if (structure) structure.end(); };
}

export default { render };
