// Proteins as cartoons, for map.js and for carp_nb.widget.StructureView. 3Dmol.js draws them; the kernel sends its text along, so that no page asks anybody for it.

async function cartoon(box, pdb, library) {
  const drawn = await (globalThis.carpNb3Dmol ??= import(URL.createObjectURL(new Blob([library], { type: "text/javascript" }))));
  let viewer;
  try { viewer = drawn.createViewer(box, { backgroundAlpha: 0 }); }
  catch (error) { viewer = null; }
  if (!viewer) { box.textContent = "The structure is not shown: this browser draws nothing in three dimensions (WebGL is off)."; return null; }
  viewer.addModel(new TextDecoder().decode(pdb), "pdb");
  const atoms = viewer.selectedAtoms({}), places = new Map(atoms.filter(a => a.atom === "CA").map(a => [a.resi - 1, a]));
  const ribbon = atoms.some(a => a.atom === "O") ? {} : { style: "trace" };   // a file of Cα atoms alone has no ribbon to lay
  viewer.zoomTo(); viewer.zoom(1.15);
  box.addEventListener("wheel", event => { if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); }, { capture: true });   // the page scrolls, Ctrl zooms
  const sized = new ResizeObserver(() => { if (box.clientWidth) viewer.resize(); });
  sized.observe(box);
  return {
    viewer, places, end: () => sized.disconnect(),
    paint(colours, sticks) {   // a colour for each residue; side chains of some
      const colorfunc = atom => colours[atom.resi - 1];
      viewer.setStyle({}, { cartoon: { ...ribbon, colorfunc } });
      if (sticks.length) viewer.addStyle({ resi: sticks.map(i => i + 1) }, { stick: { radius: 0.25, colorfunc } });
      viewer.render();
      box.dataset.painted = Number(box.dataset.painted || 0) + 1;
    },
    mark(residues, color) {
      viewer.removeAllShapes();
      for (const i of residues) { const at = places.get(i); if (at) viewer.addSphere({ center: { x: at.x, y: at.y, z: at.z }, radius: 1.6, color, opacity: 0.6 }); }
      viewer.render();
    },
  };
}

function renderStructures({ model, el }) {
  const made = (parent, tag, text, look) => { const e = document.createElement(tag); e.textContent = text; e.style.cssText = look; parent.append(e); return e; };
  const root = made(el, "div", "", "font: 13px/1.45 var(--vscode-font-family, var(--jp-ui-font-family, system-ui, sans-serif)); color: var(--vscode-editor-foreground, var(--jp-ui-font-color1, inherit))");
  root.className = "cm-structures";
  let views = [];
  async function receive(message, [pdb, library]) {
    root.replaceChildren(); views.forEach(v => v.end()); views = [];
    const panels = made(root, "div", "", "display: flex; flex-wrap: wrap; gap: 12px"), line = made(root, "div", "", "min-height: 20px");
    for (const [name, color] of Object.entries(message.legend)) {
      made(line, "span", "", `display: inline-block; width: 22px; height: 5px; border-radius: 2px; margin-right: 6px; vertical-align: middle; background: ${color}`);
      made(line, "span", name, "margin-right: 16px");
    }
    const under = made(line, "span", "drag to turn, Ctrl and the wheel to zoom", "opacity: 0.7");
    for (const [title, names] of Object.entries(message.panels)) {
      const panel = made(panels, "div", "", "flex: 1 1 300px; min-width: 0");
      made(panel, "div", title, "font-weight: 600");
      const box = made(panel, "div", "", "position: relative; height: 340px");
      box.className = "cm-structure";
      const shown = await cartoon(box, pdb, library);
      if (!shown) continue;
      shown.viewer.setHoverable({}, true, atom => { under.textContent = `${message.sequence[atom.resi - 1]}${atom.resi}: ${names[atom.resi - 1]}`; }, () => {});
      shown.paint(names.map(name => message.legend[name]), []);
      for (const other of views) { other.viewer.linkViewer(shown.viewer); shown.viewer.linkViewer(other.viewer); }
      views.push(shown);
    }
  }
  model.on("msg:custom", receive);
  model.send({ do: "hello" });
  return () => { model.off("msg:custom", receive); views.forEach(v => v.end()); };
}
