
// The page of `carp-nb map`: it stands in for the kernel of map.js, above, which draws all of it. The
// answers are recorded in #maps; what a kernel would have to compute is left out of this page.

const $page = name => document.getElementById(name);
const MAPS = JSON.parse($page("maps").textContent);
const recorded = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
let open = MAPS[0], answer = null;

function show(chosen) {
  open = chosen;
  for (const part of ["label", "facts", "trust", "notes"]) $page(part).textContent = open[part];
  document.title = open.title;
  for (const [message, buffers] of open.messages) answer(message, buffers.map(recorded));
}

function go(text) {   // a residue number, or a substitution such as T25W
  const [protein, now] = open.messages.map(m => m[0]), found = text.trim().toUpperCase().match(/^([A-Z]?)(-?\d+)([A-Z]?)$/);
  const i = found ? Number(found[2]) - now.offset : -1, last = now.offset + protein.wild_type.length - 1;
  const row = found && found[3] ? ORDER.indexOf(found[3]) : -1;
  let said = "";
  if (!found) said = `${text.trim() || "nothing"}: write a residue number or a substitution, such as 25 or T25W`;
  else if (i < 0 || i >= protein.wild_type.length) said = `there is no residue ${found[2]}: the protein has ${now.offset} to ${last}`;
  else if (found[1] && found[1] !== protein.wild_type[i]) said = `residue ${found[2]} is ${protein.wild_type[i]}, not ${found[1]}`;
  else if (found[3] && row < 0) said = `${found[3]} is none of the 20 amino acids`;
  else answer({ kind: "go", i, r: row < 0 ? Math.max(0, ORDER.indexOf(protein.wild_type[i])) : row });
  $page("said").textContent = said;
}

function csv() {
  const [[protein], [now, buffers]] = open.messages, values = new Float32Array(recorded(buffers[1]).buffer);
  const lines = ["mutant,position,wild_type,amino_acid,log_odds,probability,mean_effect,entropy"];
  new Int32Array(recorded(buffers[0]).buffer).forEach((i, n) => {
    const row = values.subarray(22 * n, 22 * n + 22), wt = protein.wild_type[i], number = i + now.offset;
    [...LETTERS].forEach((a, k) => {
      if (a !== wt && Number.isFinite(row[k]))
        lines.push([wt + number + a, number, wt, a, row[k].toFixed(4), protein.probabilities ? Number(chance(row, k).toPrecision(4)) : "", row[20].toFixed(4), row[21].toFixed(4)].join());
    });
  });
  return lines.join("\n") + "\n";
}

const NOTHING_NEW = [new Uint8Array(), new Uint8Array(), new Uint8Array()];   // no rows
const kernel = {
  on: (event, receive) => { if (event === "msg:custom") answer = receive; },
  off: () => {},
  // a kernel answers each message, and later
  send: ({ do: word, with: words }) => setTimeout(() => {
    if (word === "hello") show(open);
    else answer(open.messages[1][0], NOTHING_NEW);
    if (word === "add") go(words[0]);
  }),
};

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => { document.body.dataset.jpThemeLight = !dark.matches; };   // map.js watches this attribute
dark.addEventListener("change", dress);
dress();
render({ model: kernel, el: $page("map") });
$page("map").querySelector("[data-is=map]").setAttribute("aria-label", "Mutation map. Arrows move, plus and minus zoom, Escape leaves; what is under the cursor is read out below.");
$page("map").querySelector(".cm-keys").textContent = "Arrows move · + − zoom · Esc leaves · drag pans";

$page("protein").append(...MAPS.map((map, n) => element("option", { value: n }, map.label)));
$page("which").hidden = MAPS.length < 2;
$page("protein").addEventListener("change", e => show(MAPS[e.target.value]));
$page("go").addEventListener("keydown", e => { if (e.key === "Enter") go(e.target.value); });
$page("find").addEventListener("click", () => go($page("go").value));
$page("csv").addEventListener("click", () => {
  const link = element("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: open.file });
  link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
$page("copy").addEventListener("click", () => navigator.clipboard.writeText(csv()).then(
  () => { $page("said").textContent = "copied"; }, () => { $page("said").textContent = "the browser does not allow copying; download it"; }));
