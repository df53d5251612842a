// The page: what the user does, and what is shown for it.

import { ModelClient } from "./client.js";
import { encode, measure, toCoco } from "./masks.js";
import { cutoutPng, maskPng, openPicture, pixelsOf, save } from "./picture.js";
import { History } from "./prompts.js";
import { View } from "./view.js";

const DRAG = 5; // pixels of the screen; a pointer that moves further draws a box
const PREVIEW_MS = 80; // a mask that takes longer is not shown before it is clicked
const TRIAL_PREVIEWS = 2; // the first ones take longer
const POINTS_PER_SIDE = 16;
const [STEP, SMALL_STEP] = [0.02, 0.005]; // of the photo, that an arrow key moves the crosshair by
const HELP = "Click on an object, or drag a box around it. All points and the box together prompt one mask.";

const at = (id) => document.getElementById(id);
const stage = at("stage");
const view = new View(stage);
const model = new ModelClient((loaded, total) => {
  showProgress(loaded / total);
  say(`Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB.`);
});

let about = null; // contents of model.json
let picture = null;
let history = new History();
let prediction = null; // the mask of the prompts
let everything = null; // all masks
let cross = null; // where the keys are
let drag = null; // a pointer that is down
let firstCorner = null; // of a box drawn by keys
let predictTimes = []; // of this picture, milliseconds
let isPreviewing = false;
let waiting = 0; // for so many answers of the model
let isBusy = false; // with everything
let opened = 0; // so many pictures; only the latest is shown
let version = 0; // of what is shown; answers to what is no longer shown are dropped

start();

async function start() {
  try {
    const backend = new URLSearchParams(location.search).get("backend");
    ({ about } = await ask("load", { backend }));
    at("about").textContent = `${about.model} runs in this browser: photos stay on this device. ${about.note}`;
    about.images.forEach(addExample);
    if (!opened) await openExample(about.images[0]); // unless a photo was opened in the meantime
  } catch (error) {
    fail(error);
  }
}

// Call the model; the page counts as busy until it answers.
async function ask(call, values, options) {
  waiting++;
  stage.setAttribute("aria-busy", "true");
  try {
    return await model.call(call, values, options);
  } finally {
    waiting--;
    stage.setAttribute("aria-busy", String(waiting > 0));
  }
}

function addExample(example) {
  const button = document.createElement("button");
  const image = Object.assign(new Image(), { src: example.file, alt: example.title });
  button.append(image);
  button.title = example.title;
  button.addEventListener("click", () => openExample(example));
  at("examples").append(button);
}

async function openExample({ file }) {
  try {
    await open(await (await fetch(file)).blob(), file.split("/").at(-1));
  } catch (error) {
    fail(error);
  }
}

// Show a picture and encode it; clicks in the meantime wait for the encoder.
async function open(blob, name) {
  const turn = ++opened;
  try {
    const next = await openPicture(blob, name);
    if (turn !== opened) return;
    if (isBusy) model.call("stop");
    version++;
    picture = next;
    history = new History();
    [prediction, everything, cross, firstCorner, predictTimes] = [null, null, null, null, []];
    view.showPicture(picture);
    const { width, height, isReduced } = picture;
    say("Reading the photo.");
    showProgress();
    const encoding = ask("setImage", { rgba: pixelsOf(picture), width, height });
    show();
    const { ms, backend } = await encoding;
    if (picture !== next) return;
    showProgress(1);
    const where = backend === "webgpu" ? "the graphics processor (WebGPU)" : "the processor (WebAssembly)";
    if (!prediction) {
      const size = `${isReduced ? "Reduced to " : ""}${width} x ${height} pixels`;
      say(`${size}, encoded in ${seconds(ms)} by ${where}. ${HELP}`);
    }
  } catch (error) {
    fail(error);
  }
}

// Show the prompts, and their mask once it is there.
async function refresh() {
  const asked = ++version;
  everything = null;
  if (history.isEmpty) {
    prediction = null;
    say(HELP);
    return show();
  }
  showButtons();
  view.showMarks(history.prompts, null, cross);
  try {
    const found = await ask("predict", { prompts: history.prompts });
    predictTimes.push(found.ms);
    if (asked !== version) return;
    prediction = { ...found, prompts: history.prompts, measured: measure(found.mask, picture.width) };
    const area = prediction.measured?.area;
    const mask = area ? `Mask of ${area.toLocaleString("en")} pixels` : "Empty mask";
    say(`${mask}, predicted IoU ${found.predictedIou.toFixed(2)}, in ${seconds(found.ms)}.`);
    show();
  } catch (error) {
    fail(error);
  }
}

function show() {
  view.showMasks(everything ? everything.map : prediction?.mask);
  view.showMarks(history.prompts, drag?.box, cross);
  showButtons();
}

function showButtons() {
  const hasMask = Boolean(prediction?.measured);
  const enabled = {
    undo: history.canUndo,
    redo: history.canRedo,
    clear: !history.isEmpty || everything,
    everything: picture && !isBusy,
    "save-mask": hasMask && !everything,
    "save-cutout": hasMask && !everything,
    "save-coco": everything?.annotations.length || hasMask,
  };
  for (const [id, isEnabled] of Object.entries(enabled)) at(id).disabled = !isEnabled;
  at("stop").hidden = !isBusy;
}

// Show the mask that a click would take, if the model is quick enough.
async function preview(event) {
  const isQuick = predictTimes.length < TRIAL_PREVIEWS || Math.min(...predictTimes) < PREVIEW_MS;
  if (isPreviewing || waiting || !isQuick || !history.isEmpty || everything || tool() !== "object") return;
  isPreviewing = true;
  const shown = version;
  const [x, y] = view.position(event);
  try {
    const found = await model.call("predict", { prompts: { points: [{ x, y, foreground: true }], box: null } });
    predictTimes.push(found.ms);
    if (shown === version && history.isEmpty && !everything && stage.matches(":hover")) {
      view.showMasks(found.mask, true);
    }
  } catch (error) {
    fail(error);
  } finally {
    isPreviewing = false;
  }
}

async function segmentEverything() {
  const asked = ++version;
  isBusy = true;
  history.clear();
  prediction = everything = null;
  show();
  try {
    const onDone = (share) => {
      showProgress(share);
      say(`Segmenting everything: ${Math.round(100 * share)} %.`);
    };
    const found = await ask("everything", { pointsPerSide: POINTS_PER_SIDE }, { onDone });
    isBusy = false;
    showProgress(1);
    if (asked === version && found.stopped) say("Stopped.");
    if (asked === version && !found.stopped) {
      everything = found;
      const none = found.annotations.length ? "" : " No mask passes the model's thresholds.";
      say(`${found.annotations.length} masks of ${POINTS_PER_SIDE ** 2} points, in ${seconds(found.ms)}.${none}`);
    }
    show();
  } catch (error) {
    isBusy = false;
    fail(error);
    showButtons();
  }
}

// Marks, by pointer and by keys.

function mark(x, y, isObject) {
  history.addPoint(x, y, isObject);
  refresh();
}

// Begin a box at the crosshair, or end it there.
function markCorner(x, y) {
  if (!firstCorner) {
    firstCorner = [x, y];
    say("Move the crosshair to the opposite corner, and press R again.");
  } else if (addBox(...firstCorner, x, y)) refresh();
}

function addBox(x0, y0, x1, y1) {
  firstCorner = null;
  if (x0 === x1 || y0 === y1) {
    say("A box must have a width and a height: drag from one corner to the opposite one.");
    return false;
  }
  history.setBox(x0, y0, x1, y1);
  return true;
}

const tool = () => document.querySelector("input[name=tool]:checked").value;

stage.addEventListener("pointerdown", (event) => {
  if (!picture || isBusy || !event.isPrimary || event.button === 1) return;
  const isBackground = event.button === 2 || event.shiftKey || event.ctrlKey;
  const [x, y] = view.position(event);
  drag = { x, y, clientX: event.clientX, clientY: event.clientY, kind: isBackground ? "background" : tool(), box: null };
  cross = firstCorner = null;
  // a finger that moves scrolls the page, unless it is to draw
  drag.draws = !isBackground && (event.pointerType === "mouse" || tool() === "box");
  if (drag.draws) stage.setPointerCapture(event.pointerId);
});
stage.addEventListener("pointermove", (event) => {
  if (!drag) {
    if (picture && event.pointerType === "mouse") preview(event);
    return;
  }
  const moved = Math.hypot(event.clientX - drag.clientX, event.clientY - drag.clientY);
  if (!drag.draws || (!drag.box && moved <= DRAG)) return;
  if (!drag.box) show(); // without a mask that was shown for the pointer's place
  drag.box = [drag.x, drag.y, ...view.position(event)];
  view.showMarks(history.prompts, drag.box, cross);
});
stage.addEventListener("pointerup", () => {
  if (!drag) return;
  const { x, y, kind, box } = drag;
  drag = null;
  if (box) {
    if (addBox(...box)) refresh();
    else show();
  } else if (kind === "box") say("Drag from one corner of the object to the opposite one.");
  else mark(x, y, kind === "object");
});
stage.addEventListener("pointercancel", () => {
  drag = null;
  if (picture) show();
});
stage.addEventListener("pointerleave", () => {
  if (picture && !drag && history.isEmpty && !everything) view.showMasks(null);
});
stage.addEventListener("contextmenu", (event) => event.preventDefault());

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
stage.addEventListener("keydown", (event) => {
  const arrow = ARROWS[event.key];
  const key = event.key.toLowerCase();
  if (!picture || isBusy || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!arrow && !["enter", " ", "r"].includes(key)) return;
  event.preventDefault();
  const size = [picture.width, picture.height];
  cross ??= size.map((length) => length / 2);
  if (arrow) {
    const step = event.shiftKey ? SMALL_STEP : STEP;
    cross = cross.map((value, i) => Math.min(Math.max(value + step * size[i] * arrow[i], 0), size[i]));
    view.showMarks(history.prompts, firstCorner && [...firstCorner, ...cross], cross);
  } else if (key === "r") markCorner(...cross);
  else mark(...cross, !event.shiftKey && tool() !== "background");
});

// Buttons and keys of the whole page.

const actions = {
  undo: () => (history.undo(), refresh()),
  redo: () => (history.redo(), refresh()),
  clear: () => (history.clear(), (firstCorner = null), refresh()),
  everything: segmentEverything,
  stop: () => model.call("stop"),
  "save-mask": async () => save(await maskPng(prediction.mask, picture), picture, "_mask.png"),
  "save-cutout": async () =>
    save(await cutoutPng(prediction.mask, picture, prediction.measured.bbox), picture, "_cutout.png"),
  "save-coco": () => {
    const content = toCoco(picture, everything?.annotations ?? [annotationOf(prediction)], about);
    save(new Blob([JSON.stringify(content)], { type: "application/json" }), picture, "_coco.json");
  },
};
for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", action);

function annotationOf({ mask, measured, predictedIou, prompts: { points, box } }) {
  return {
    rle: encode(mask, picture.width, picture.height),
    ...measured,
    predicted_iou: predictedIou,
    ...(points.length && {
      point_coords: points.map(({ x, y }) => [x, y]),
      point_labels: points.map(({ foreground }) => Number(foreground)),
    }),
    ...(box && { prompt_box_xyxy: box }),
  };
}

const KEYS = { delete: "clear", backspace: "clear", "ctrl+z": "undo", "ctrl+shift+z": "redo", "ctrl+y": "redo" };
document.addEventListener("keydown", (event) => {
  const modifiers = (event.ctrlKey || event.metaKey ? "ctrl+" : "") + (event.shiftKey ? "shift+" : "");
  const key = modifiers + event.key.toLowerCase();
  if (key === "b") return choose(tool() === "background" ? "object" : "background");
  if (key === "escape" && picture) {
    drag = firstCorner = null;
    return show();
  }
  if (!KEYS[key]) return;
  event.preventDefault();
  if (!at(KEYS[key]).disabled) actions[KEYS[key]]();
});
const choose = (kind) => document.querySelector(`input[name=tool][value=${kind}]`).click();
at("tool").addEventListener("change", () => stage.classList.toggle("draws", tool() === "box"));

const openFiles = (files) => {
  if (files.length) open(files[0], files[0].name);
};
at("file").addEventListener("change", (event) => {
  openFiles(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => openFiles(event.clipboardData.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  openFiles(event.dataTransfer.files);
});

// Words and numbers.

function say(text) {
  at("status").textContent = text;
  at("status").classList.remove("error");
}

function fail(error) {
  showProgress(1);
  say(error.message);
  at("status").classList.add("error");
}

// share: from 0 to 1, which hides it; undefined where it is not known.
function showProgress(share) {
  const progress = at("progress");
  progress.hidden = share === 1;
  if (share === undefined) progress.removeAttribute("value");
  else progress.value = share;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);
