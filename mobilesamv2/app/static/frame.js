// How an image lies in the model's square input; the pixels and masks are those of mobilesamv2.transforms.ModelFrame.

const WEIGHT_BITS = 22; // of Pillow's fixed-point weights: 32 bits less 8 of a pixel and 2 to spare

export class ModelFrame {
  // about: the contents of model.json
  constructor(width, height, about) {
    this.width = width;
    this.height = height;
    this.side = about.image_size;
    this.about = about;
    const scale = this.side / Math.max(width, height);
    const resized = (length) => (about.keep_aspect_ratio ? Math.max(1, Math.floor(length * scale + 0.5)) : this.side);
    this.resizedWidth = resized(width);
    this.resizedHeight = resized(height);
  }

  // A point in pixels of the image, in pixels of the model's input.
  toModel(x, y) {
    return [x * (this.resizedWidth / this.width), y * (this.resizedHeight / this.height)];
  }

  // RGBA bytes of the image as the encoder's input, 3 x S x S: resized, normalised, then padded with zeros.
  modelInput(rgba) {
    const { resizedWidth: width, resizedHeight: height, side } = this;
    const { pixel_mean: mean, pixel_std: std, keep_aspect_ratio: rounded, antialias } = this.about;
    const pixels = resize(rgba, this.width, this.height, width, height, rounded, antialias);
    const input = new Float32Array(3 * side * side);
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < height; y++) {
        const row = (c * side + y) * side;
        for (let x = 0; x < width; x++) input[row + x] = (pixels[(y * width + x) * 3 + c] - mean[c]) / std[c];
      }
    }
    return input;
  }

  // Low-res logits, S/4 x S/4, at the size of the image.
  logitsToOriginal(lowRes) {
    const cells = this.side / 4;
    if (!this.about.keep_aspect_ratio) {
      const taps = this.about.bicubic_masks ? cubicTaps : linearTaps;
      return upscale(lowRes, cells, taps(cells, this.width), taps(cells, this.height));
    }
    const { resizedWidth: width, resizedHeight: height } = this;
    const image = this.logitsToModel(lowRes);
    return upscale(image, width, linearTaps(width, this.width), linearTaps(height, this.height));
  }

  // Low-res logits at the size of the image in the model's input, without its padding.
  logitsToModel(lowRes) {
    const taps = linearTaps(this.side / 4, this.side);
    return upscale(lowRes, this.side / 4, taps.slice(0, this.resizedWidth), taps.slice(0, this.resizedHeight));
  }
}

// Resize RGBA bytes to RGB with Pillow's bilinear filter, which averages where it shrinks (a canvas does not).
// rounded: compute with Pillow's fixed-point weights and return bytes, equal to Pillow's; else floats, as torch does.
// antialias: average where it shrinks; else each pixel is made of the two nearest along an axis, as in torch.
export function resize(rgba, width, height, newWidth, newHeight, rounded = true, antialias = true) {
  const Pixels = rounded ? Uint8ClampedArray : Float32Array;
  const [acrossTaps, downTaps] = [triangleTaps(width, newWidth, antialias), triangleTaps(height, newHeight, antialias)];
  const step = newWidth * 3;
  const across = new Pixels(step * height);
  for (let y = 0; y < height; y++) resampleLine(rgba, y * width * 4, 4, across, y * step, 3, acrossTaps, rounded);
  const pixels = new Pixels(step * newHeight);
  for (let x = 0; x < newWidth; x++) resampleLine(across, x * 3, step, pixels, x * 3, step, downTaps, rounded);
  return pixels;
}

function resampleLine(source, first, step, target, targetFirst, targetStep, taps, rounded) {
  const weights = rounded ? taps.fixed : taps.weights;
  for (let i = 0; i < taps.start.length; i++) {
    const begin = first + taps.start[i] * step;
    const end = taps.offset[i + 1];
    for (let c = 0; c < 3; c++) {
      let sum = rounded ? 1 << (WEIGHT_BITS - 1) : 0;
      for (let k = taps.offset[i], at = begin + c; k < end; k++, at += step) sum += source[at] * weights[k];
      target[targetFirst + i * targetStep + c] = rounded ? sum >> WEIGHT_BITS : sum;
    }
  }
}

// Pixels and weights that each new pixel is made of: start[i] and those from offset[i] to offset[i + 1].
// Source: precompute_coeffs and normalize_coeffs_8bpc in Pillow's Resample.c.
function triangleTaps(length, newLength, antialias) {
  const scale = length / newLength;
  const support = antialias ? Math.max(scale, 1) : 1;
  const start = new Int32Array(newLength);
  const offset = new Int32Array(newLength + 1);
  const weights = [];
  for (let i = 0; i < newLength; i++) {
    const centre = (i + 0.5) * scale;
    start[i] = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(length, Math.trunc(centre + support + 0.5));
    const line = [];
    for (let x = start[i]; x < end; x++) line.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) / support)));
    const sum = line.reduce((a, b) => a + b, 0);
    weights.push(...line.map((weight) => weight / sum));
    offset[i + 1] = weights.length;
  }
  const fixed = Float64Array.from(weights, (weight) => Math.trunc(weight * (1 << WEIGHT_BITS) + 0.5));
  return { start, offset, weights: Float64Array.from(weights), fixed };
}

// The pixels that each new pixel is made of, and their weights; the two that it lies between, as torch without antialiasing.
function linearTaps(length, newLength) {
  const scale = Math.fround(length / newLength);
  return Array.from({ length: newLength }, (_, i) => {
    const position = Math.max(0, Math.fround(Math.fround(scale * (i + 0.5)) - 0.5));
    const low = Math.min(Math.trunc(position), length - 1);
    const weight = Math.fround(position - low);
    return { from: [low, Math.min(low + 1, length - 1)], weights: [1 - weight, weight] };
  });
}

// Two pixels on either side, those beyond the border being the border's; as torch's bicubic filter.
function cubicTaps(length, newLength) {
  const scale = length / newLength;
  return Array.from({ length: newLength }, (_, i) => {
    const position = scale * (i + 0.5) - 0.5;
    const low = Math.floor(position);
    const from = [-1, 0, 1, 2].map((step) => Math.min(length - 1, Math.max(0, low + step)));
    return { from, weights: [-1, 0, 1, 2].map((step) => cubic(Math.abs(position - low - step))) };
  });
}

const CUBIC = -0.75; // of the slope at a distance of 1; Source: torch

function cubic(x) {
  if (x <= 1) return ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1;
  return x < 2 ? ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC : 0;
}

function upscale(source, sourceWidth, columns, rows) {
  const target = new Float32Array(columns.length * rows.length);
  const line = new Float32Array(sourceWidth);
  rows.forEach(({ from, weights }, y) => {
    line.fill(0);
    from.forEach((row, k) => {
      const start = row * sourceWidth;
      for (let x = 0; x < sourceWidth; x++) line[x] += source[start + x] * weights[k];
    });
    const first = y * columns.length;
    for (let x = 0; x < columns.length; x++) {
      const column = columns[x];
      let sum = 0;
      for (let k = 0; k < column.from.length; k++) sum += line[column.from[k]] * column.weights[k];
      target[first + x] = sum;
    }
  });
  return target;
}
