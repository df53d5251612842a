// What is drawn: the picture, masks over it, and marks of the prompts.

const MASK_COLOUR = [30, 120, 255];
const OPACITY = 130; // of 255
const GOLDEN_RATIO = 0.618034; // hue step between masks, so that neighbours differ clearly

export class View {
  constructor(stage) {
    this.stage = stage;
    [this.photo, this.mask] = stage.querySelectorAll("canvas");
    this.marks = stage.querySelector("#marks");
  }

  showPicture({ canvas, width, height }) {
    for (const layer of [this.photo, this.mask]) Object.assign(layer, { width, height });
    this.photo.getContext("2d").drawImage(canvas, 0, 0);
    this.stage.style.setProperty("--width", width);
    this.stage.style.setProperty("--height", height);
    this.size = [width, height];
  }

  // A pointer's position in pixels of the picture, inside it.
  position({ clientX, clientY }) {
    const box = this.photo.getBoundingClientRect();
    const inside = (share, length) => Math.min(Math.max(share, 0), 1) * length;
    return [
      inside((clientX - box.left) / box.width, this.size[0]),
      inside((clientY - box.top) / box.height, this.size[1]),
    ];
  }

  // numbers: of each pixel, 0 or the number of its mask. isPreview: of a click that has not been made.
  showMasks(numbers, isPreview = false) {
    const context = this.mask.getContext("2d");
    this.mask.classList.toggle("preview", isPreview);
    if (!numbers) return context.clearRect(0, 0, ...this.size);
    const image = new ImageData(...this.size);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = [0];
    for (let i = 0; i < pixels.length; i++) {
      const number = numbers[i];
      if (number) pixels[i] = colours[number] ??= packed(numbers instanceof Uint8Array ? MASK_COLOUR : hue(number));
    }
    context.putImageData(image, 0, 0);
  }

  // drawn: a box that is not finished; cross: where the keys are, or null.
  showMarks({ points, box }, drawn, cross) {
    const marks = points.map(({ x, y, foreground }) => this.#mark(foreground ? "point" : "point background", x, y));
    for (const [kind, corners] of [["box", box], ["box drawn", drawn]]) {
      if (!corners) continue;
      const [x0, y0, x1, y1] = corners;
      marks.push(this.#mark(kind, Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)));
    }
    if (cross) marks.push(this.#mark("cross", ...cross));
    this.marks.replaceChildren(...marks);
  }

  #mark(kind, x, y, width = 0, height = 0) {
    const mark = document.createElement("div");
    mark.className = kind;
    const percent = (value, axis) => `${(100 * value) / this.size[axis]}%`;
    Object.assign(mark.style, { left: percent(x, 0), top: percent(y, 1) });
    if (kind.startsWith("box")) Object.assign(mark.style, { width: percent(width, 0), height: percent(height, 1) });
    return mark;
  }
}

function packed([red, green, blue]) {
  return ((OPACITY << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

// A bright colour of the number's own, as visualize.overlay gives.
function hue(number) {
  const sector = ((number * GOLDEN_RATIO) % 1) * 6;
  return [5, 3, 1].map((shift) => {
    const k = (shift + sector) % 6;
    return Math.round(255 * (1 - 0.75 * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}
