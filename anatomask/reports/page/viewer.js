"use strict";

/* Viewer: two panes with the scan and one label map each, which move together. */
class Pane {
  constructor(element, opacity) {
    this.select = element.querySelector("select");
    this.canvas = element.querySelector("canvas");
    this.opacity = opacity;
    this.view = new niivue.Niivue({
      logLevel: "error",
      backColor: [0, 0, 0, 1],
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      multiplanarForceRender: true,
      crosshairWidth: 0.5,
      crosshairColor: [1, 1, 1, 0.6],
      show3Dcrosshair: true,
    });
  }

  async open(found, data) {
    this.found = found;
    this.data = data;
    this.select.replaceChildren(new Option("no labels", "-1"));
    found.labels.forEach((one, index) => this.select.add(new Option([one.title, one.score].filter(Boolean).join(", "), index)));
    await this.draw();
  }

  async draw() {
    const { found, data, view } = this;
    const named = { name: `${found.image}.nii.gz`, colorbarVisible: false };
    const [low, high] = found.window;
    const volumes = [
      await niivue.NVImage.loadFromBase64({ ...named, base64: data(found.image), colormap: "gray", cal_min: low, cal_max: high }),
    ];
    const label = found.labels[Number(this.select.value)];
    if (label) {
      const drawn = await niivue.NVImage.loadFromBase64({ ...named, base64: data(label.id), opacity: this.opacity() });
      drawn.setColormapLabel(found.colours);
      volumes.push(drawn);
    }
    while (view.volumes.length) view.removeVolume(view.volumes[0]);
    volumes.forEach((volume) => view.addVolume(volume));
    this.show();
  }

  /* In 3D, the scan would hide the labels. */
  show() {
    const { view } = this;
    const alone = view.opts.sliceType === view.sliceTypeRender && view.volumes.length > 1;
    view.setOpacity(0, alone ? 0 : 1);
    if (view.volumes.length > 1) view.setOpacity(1, alone ? 1 : this.opacity());
  }
}

/* Say why, and return the state; what is chosen next is drawn all the same. */
function failed(error) {
  document.querySelector("#viewer .description").textContent = `The scans cannot be shown: ${error.message}`;
  return "failed";
}

async function startViewer(viewer) {
  const { cases } = JSON.parse(document.getElementById("viewer-data").textContent);
  const data = (id) => document.getElementById(id).textContent;
  const chosen = viewer.querySelector("#case");
  const opacity = viewer.querySelector("#opacity");
  const panes = [...viewer.querySelectorAll(".pane")].map((one) => new Pane(one, () => Number(opacity.value)));
  if (!document.createElement("canvas").getContext("webgl2")) {
    for (const one of panes) one.canvas.replaceWith(Object.assign(document.createElement("p"), { textContent: "The viewer needs WebGL 2, which this browser lacks or has turned off." }));
    viewer.dataset.state = "without WebGL";
    return;
  }
  for (const one of panes) await one.view.attachToCanvas(one.canvas, true);
  panes.forEach((one, index) => one.view.broadcastTo(panes[1 - index].view));

  const open = async () => {
    const found = cases[Number(chosen.value)];
    const legend = found.classes.map(({ name, colour }) => {
      const item = document.createElement("li");
      const patch = document.createElement("i");
      patch.style.background = colour;
      item.append(patch, name);
      return item;
    });
    viewer.querySelector(".legend").replaceChildren(...legend);
    viewer.querySelector(".description").textContent = found.description;
    for (const [index, one] of panes.entries()) {
      await one.open(found, data);
      one.select.value = String(Math.min(index, found.labels.length - 1));
      await one.draw();
    }
  };

  cases.forEach((one, index) => chosen.add(new Option(one.title, index)));
  /* Loading takes a while: what is chosen meanwhile waits, so that a pane never holds volumes of two cases. */
  let turn = Promise.resolve();
  let waiting = 0;
  const inTurn = (work) => {
    viewer.dataset.state = "loading";
    waiting += 1;
    turn = turn.then(work).then(() => "shown", failed).then((state) => {
      waiting -= 1;
      if (!waiting) viewer.dataset.state = state;
    });
    return turn;
  };
  chosen.addEventListener("change", () => inTurn(open));
  for (const one of panes) one.select.addEventListener("change", () => inTurn(() => one.draw()));
  opacity.addEventListener("input", () => panes.forEach((one) => one.show()));
  for (const button of viewer.querySelectorAll(".buttons button")) {
    button.addEventListener("click", () => {
      for (const other of viewer.querySelectorAll(".buttons button")) other.setAttribute("aria-pressed", String(other === button));
      panes.forEach((one) => one.view.setSliceType(one.view[button.value]));
      panes.forEach((one) => one.show());
    });
  }
  await inTurn(open);
}

const viewer = document.getElementById("viewer");
startViewer(viewer).catch((error) => {
  viewer.dataset.state = failed(error);
});
