// The viewer of the page: three planes and a solid, drawn by NiiVue (github.com/niivue/niivue), whose code lies packed
// in the page. Nothing is fetched from elsewhere.
const PLANES = 3; // NiiVue's SLICE_TYPE.MULTIPLANAR
const SOLID = 4; // NiiVue's SLICE_TYPE.RENDER
const box = document.getElementById("viewer");
const control = (name) => document.getElementById(`viewer-${name}`);
const settings = JSON.parse(control("settings").textContent);
const sliders = ["x", "y", "z"].map(control); // right, anterior, superior: NiiVue's world
let views = null;

async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}

async function importNiivue() {
  const code = await unpack(control("code").textContent);
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  return (await import(url)).Niivue;
}

async function createView(Niivue, canvas, sliceType, more) {
  const quiet = { dragAndDropEnabled: false, loadingText: "", isColorbar: false, backColor: [0, 0, 0, 1], logLevel: "silent" };
  const view = new Niivue({ ...quiet, ...more });
  await view.attachToCanvas(control(canvas), true);
  view.setSliceType(sliceType);
  return view;
}

async function open() {
  const Niivue = await importNiivue();
  const planes = await createView(Niivue, "planes", PLANES, {
    multiplanarShowRender: 0, multiplanarLayout: 3, isRadiologicalConvention: true, sagittalNoseLeft: true, crosshairWidth: 0.2,
    crosshairColor: [1, 0.85, 0.3, 0.8], tileMargin: 4, fontMinPx: 14,
  });
  const solid = await createView(Niivue, "solid", SOLID, { show3Dcrosshair: false, crosshairWidth: 0, isOrientationTextVisible: true });
  planes.onLocationChange = () => planes.scene.crosshairPos.forEach((at, axis) => { sliders[axis].value = at; });
  views = { planes, solid };
}

const caseOf = (name) => JSON.parse(document.querySelector(`script[data-case="${CSS.escape(name)}"]`).textContent);

function asUrl(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes]));
}

async function load(view, volumes, layer, opacity) {
  const urls = volumes.map((base64) => asUrl(base64));
  await view.loadVolumes(urls.map((url, index) => ({ url, name: `${index ? "overlay" : "image"}.nii.gz` })));
  urls.forEach((url) => URL.revokeObjectURL(url));
  if (volumes.length > 1) {
    const overlay = view.volumes[1];
    const colours = settings.layers[layer];
    if (colours.labels) overlay.setColormapLabel(colours.labels);
    else Object.assign(overlay, { colormap: colours.colormap, cal_min: colours.from, cal_max: 255 });
    overlay.opacity = opacity;
  }
}

async function show() {
  const name = control("case").value;
  const layer = control("layer").value;
  control("status").textContent = `Loading ${name} …`;
  box.dataset.shown = "";
  if (views === null) await open();
  const volumes = caseOf(name);
  const overlay = volumes.layers[layer];
  const keep = box.dataset.case === name ? [...views.planes.scene.crosshairPos] : volumes.place;
  const shown = overlay === undefined ? [volumes.image] : [volumes.image, overlay];
  const opacity = Number(control("opacity").value);
  await load(views.planes, shown, layer, opacity);
  await load(views.solid, shown, layer, 1);
  // labels alone stand in the solid; a heat map needs the image around it
  views.solid.volumes[0].opacity = overlay === undefined || !settings.layers[layer].labels ? 1 : 0;
  views.solid.updateGLVolume();
  views.planes.updateGLVolume();
  views.solid.setRenderAzimuthElevation(settings.azimuth, settings.elevation);
  moveTo(keep);
  box.dataset.case = name;
  box.dataset.shown = `${name}/${layer}`;
  control("status").textContent = "";
  document.querySelectorAll("[data-legend]").forEach((legend) => { legend.hidden = legend.dataset.legend !== layer; });
}

function moveTo(place) {
  views.planes.scene.crosshairPos = place;
  views.planes.drawScene();
  sliders.forEach((slider, axis) => { slider.value = place[axis]; });
}

function fade() {
  const overlay = views?.planes.volumes[1];
  if (overlay === undefined) return;
  overlay.opacity = Number(control("opacity").value);
  views.planes.updateGLVolume();
}

// One load at a time: what is chosen while one goes on is shown after it.
let queue = Promise.resolve();
function enqueue() {
  queue = queue.then(show).catch((error) => {
    control("status").textContent = `The viewer cannot be shown here (${error.message}). The pictures below show the same cases.`;
    console.error(error);
  });
  return queue;
}

control("case").addEventListener("change", enqueue);
control("layer").addEventListener("change", enqueue);
control("opacity").addEventListener("input", fade);
sliders.forEach((slider) => slider.addEventListener("input", () => { if (views) moveTo(sliders.map((s) => Number(s.value))); }));
document.querySelectorAll("[data-view]").forEach((button) => button.addEventListener("click", () => {
  control("case").value = button.dataset.view;
  box.scrollIntoView({ behavior: "instant", block: "start" });
  enqueue();
}));
// The code is unpacked when the reader comes near it, not while the page opens.
new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  if (views === null && !box.dataset.shown) enqueue();
}, { rootMargin: "200px" }).observe(box);
