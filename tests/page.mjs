// The page of the mutation map under node, without a browser: a document of the few parts that
// map.js touches. Reads steps as JSON from standard input and writes what the page shows after each.
//   node tests/page.mjs structure.js map.js < steps.json
// A step: {"message": {...}, "buffers": [base64]}, {"click": part}, {"wait": milliseconds},
// {"live": true|false}, {"body": {attribute: value}} or {"send": "fails"}.

import { readFileSync } from "node:fs";

const LETTER = 0.6; // width of a letter, in heights of its font

class Context {
  constructor(canvas) { this.canvas = canvas; this.reset(); this.fillStyle = "#000"; this.font = "10px sans-serif"; }
  reset() { this.stack = []; this.clips = 0; this.texts = []; this.textAlign = "left"; this.globalAlpha = 1; }
  clearRect() { this.texts = []; }
  save() { this.stack.push(this.clips); }
  restore() { if (this.stack.length) this.clips = this.stack.pop(); }
  clip() { this.clips += 1; }
  measureText(text) { return { width: LETTER * parseFloat(/([\d.]+)px/.exec(this.font)[1]) * String(text).length }; }
  fillText(text, x, y) {
    const wide = this.measureText(text).width;
    const left = { left: x, start: x, center: x - wide / 2, right: x - wide, end: x - wide }[this.textAlign];
    this.texts.push({ text: String(text), left, right: left + wide, y, clips: this.clips });
  }
  createImageData(width, height) { return { width, height, data: new Uint8ClampedArray(4 * width * height) }; }
  putImageData(image, x) {
    for (const value of image.data) if (Number.isNaN(value)) throw new Error("not a number in an image");
    if (image.width > 1 || !page.pixels) { page.pixels = image; return; }
    for (let row = 0; row < image.height; row++) page.pixels.data.set(image.data.subarray(4 * row, 4 * row + 4), 4 * (row * page.pixels.width + x));
  }
}
for (const name of ["setTransform", "fillRect", "strokeRect", "beginPath", "moveTo", "lineTo", "stroke", "fill", "arc", "rect", "drawImage", "setLineDash"])
  Context.prototype[name] = function (...numbers) {
    for (const n of numbers) if (typeof n === "number" && !Number.isFinite(n)) throw new Error(`${name}(${numbers})`);
  };

class Part {
  constructor(tag) {
    Object.assign(this, { tagName: tag, children: [], dataset: {}, attributes: {}, listeners: {}, style: {}, hidden: false, disabled: false, value: "", className: "", title: "", text: "", selected: false, href: "", download: "" });
    this.classList = { contains: name => this.className.split(" ").includes(name), toggle() {} };
  }
  set innerHTML(text) {
    for (const [, tag, attributes] of text.matchAll(/<(\w+)([^>]*)>/g)) {
      const is = /data-is="(\w+)"/.exec(attributes);
      if (!is && !/class="cm-(bar|body)"/.test(attributes)) continue;
      const part = new Part(tag);
      part.hidden = /\shidden/.test(attributes);
      if (!is) { part.className = /class="(cm-\w+)/.exec(attributes)[1]; this.children.push(part); continue; }
      part.dataset.is = is[1];
      if (is[1] === "error") this.children.push(part);
      (this.parts ??= []).push(part);
    }
  }
  get textContent() { return this.text + this.children.map(c => typeof c === "string" ? c : c.textContent).join(""); }
  set textContent(text) { this.text = String(text); this.children = []; }
  get isConnected() { return true; }
  get clientWidth() { return page.width; }
  get onclick() { return null; }
  querySelectorAll() { return this.parts ?? []; }
  closest() { return page.live ? null : this; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.text = ""; this.children = children; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  getAttribute(name) { return this.attributes[name] ?? null; }
  removeAttribute(name) { delete this.attributes[name]; }
  toggleAttribute(name, on) { if (on) this.attributes[name] = ""; else delete this.attributes[name]; }
  hasAttribute(name) { return name in this.attributes; }
  addEventListener(name, act) { (this.listeners[name] ??= []).push(act); }
  dispatch(name, event = {}) { for (const act of this.listeners[name] ?? []) act({ preventDefault() {}, stopPropagation() {}, ...event }); }
  getContext() { return this.context ??= new Context(this); }
  getBoundingClientRect() { return { left: 0, top: 0, width: page.width, height: 400 }; }
  click() { this.dispatch("click"); }
  select() {} focus() {} blur() {} remove() {} setPointerCapture() {}
}

const page = { width: 800, live: true, sent: [], errors: [], timers: [], now: 0, observers: [], sending: true };
const window = { devicePixelRatio: 1, addEventListener() {} };
const body = new Part("body"), documentElement = new Part("html");
const document = {
  body, documentElement, activeElement: null, hidden: false,
  createElement: tag => new Part(tag), addEventListener() {},
};
Object.assign(globalThis, {
  window, document,
  requestAnimationFrame: act => { page.timers.push({ at: page.now, act }); },
  getComputedStyle: () => ({ getPropertyValue: () => "#123456" }),
  matchMedia: () => ({ matches: page.dark ?? false, addEventListener() {}, removeEventListener() {} }),
  MutationObserver: class { constructor(act) { page.observers.push(act); } observe() {} disconnect() {} },
  ResizeObserver: class { constructor(act) { page.resized = act; } observe() {} disconnect() {} },
  setTimeout: (act, after = 0) => { page.timers.push({ at: page.now + after, act, id: ++page.timer }); return page.timer; },
  clearTimeout: id => { page.timers = page.timers.filter(t => t.id === undefined || t.id !== id); },
});
page.timer = 0;
Date.now = () => page.now;
Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
console.error = error => page.errors.push(String(error?.message ?? error));

function advance(milliseconds) {
  const end = page.now + milliseconds;
  for (let turns = 0; turns < 10_000; turns++) {
    page.timers.sort((a, b) => a.at - b.at);
    if (!page.timers.length || page.timers[0].at > end) break;
    const timer = page.timers.shift();
    page.now = Math.max(page.now, timer.at);
    timer.act();
  }
  page.now = end;
}

const listeners = {};
const model = {
  get: () => undefined,
  send: content => { if (!page.sending) throw new Error("closed"); page.sent.push(content); },
  on: (name, act) => { (listeners[name] ??= []).push(act); },
  off: () => {},
};
const source = process.argv.slice(2).map(path => readFileSync(path, "utf8")).join("");
const widget = (await import("data:text/javascript;base64," + Buffer.from(source).toString("base64"))).default;
const el = new Part("div"), steps = JSON.parse(readFileSync(0, "utf8"));
page.width = steps[0]?.width ?? 800;
page.dark = steps[0]?.dark ?? false;
for (const [name, value] of Object.entries(steps[0]?.body ?? {})) setBody(name, value);

function setBody(name, value) {
  if (name === "class") body.className = value;
  else if (name.startsWith("data-")) body.dataset[name.slice(5).replace(/-(\w)/g, (_, a) => a.toUpperCase())] = value;
  body.attributes[name] = value;
}

widget.render({ model, el });
const [root] = el.children, parts = Object.fromEntries(root.parts.map(p => [p.dataset.is, p]));

function take(step) {
  if (step.message) {
    const buffers = (step.buffers ?? []).map(text => new Uint8Array(Buffer.from(text, "base64")));
    for (const act of listeners["msg:custom"] ?? []) act(step.message, buffers);
  }
  if (step.send) page.sending = step.send !== "fails";
  if (step.click) parts[step.click].dispatch("click");
  if ("live" in step) { page.live = step.live; for (const act of listeners.comm_live_update ?? []) act(); }
  for (const [name, value] of Object.entries(step.body ?? {})) setBody(name, value);
  if (step.body) for (const act of page.observers) act();
  if (step.over) root.dispatch("pointerenter");
  if (step.hover) parts.map.dispatch("pointermove", { clientX: step.hover[0], clientY: step.hover[1], buttons: 0 });
  advance(step.wait ?? 1);
}

const shown = [];
for (const step of steps) {
  page.sent = [];
  try { take(step); } catch (error) { page.errors.push(String(error.stack)); }
  const words = {};
  for (const [name, part] of Object.entries(parts)) words[name] = part.textContent;
  const drawn = name => parts[name].getContext();
  shown.push({
    words, errors: page.errors.splice(0), sent: page.sent, root: { ...root.dataset },
    error: parts.error.hidden ? "" : parts.error.textContent,
    inert: root.children.filter(part => part.inert).map(part => part.className),
    pixels: page.pixels && page.pixels.width < 100 ? [...page.pixels.data] : null,
    map: drawn("map").texts, legend: drawn("legend").texts, open: drawn("map").stack.length,
    width: { map: parseFloat(parts.map.style.width), legend: parseFloat(parts.legend.style.width) },
  });
}
process.stdout.write(JSON.stringify(shown));
