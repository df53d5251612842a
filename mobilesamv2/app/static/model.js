// SegAny in the browser: onnxruntime-web runs the exported encoder and decoder.

import { ModelFrame } from "./frame.js";
import { decoderInputs, isAmbiguous, requireTaken } from "./prompts.js";

export class SegAny {
  constructor(ort, encoder, decoder, about, backend) {
    Object.assign(this, { ort, encoder, decoder, about, backend });
    this.frame = null;
    this.embedding = null;
  }

  // Encode an image, RGBA bytes; prompts refer to it until the next one is set.
  async setImage(rgba, width, height) {
    this.embedding = null; // if the encoder fails, no mask is computed from the picture before
    this.frame = new ModelFrame(width, height, this.about);
    const { side } = this.frame;
    const image = new this.ort.Tensor("float32", this.frame.modelInput(rgba), [1, 3, side, side]);
    const { image_embedding: embedding } = await this.encoder.run({ image });
    requireFinite(embedding.data, "image encoder", this.backend);
    this.embedding = embedding;
  }

  // The mask of one prompt: of a single point, which is ambiguous, the best of three.
  async predict(prompts) {
    requireTaken(prompts, this.about);
    const { points, labels } = decoderInputs(prompts, this.frame, this.about.pad_boxes);
    const { logits, predictedIou } = await this.decode([points], [labels]);
    const candidates = isAmbiguous(prompts) ? [1, 2, 3] : [0];
    const best = candidates.reduce((a, b) => (predictedIou[b] > predictedIou[a] ? b : a));
    const original = this.frame.logitsToOriginal(lowRes(logits, best, this.frame.side));
    return { mask: threshold(original, this.about.mask_threshold), predictedIou: predictedIou[best] };
  }

  // Four masks, low-res logits, of each of N prompts of P points.
  async decode(points, labels) {
    if (!this.embedding) throw new Error("This photo could not be encoded: open another one.");
    const shape = [points.length, points[0].length];
    const { ort, frame } = this;
    const cells = frame.side / 4;
    const inputs = {
      image_embedding: this.embedding,
      points: new ort.Tensor("float32", Float32Array.from(points.flat(2)), [...shape, 2]),
      labels: new ort.Tensor("int64", BigInt64Array.from(labels.flat(), BigInt), shape),
      // of decoders that take a mask as a prompt
      mask_input: new ort.Tensor("float32", new Float32Array(cells * cells), [1, 1, cells, cells]),
      has_mask_input: new ort.Tensor("float32", [0], [1]),
    };
    const taken = Object.fromEntries(this.decoder.inputNames.map((name) => [name, inputs[name]]));
    const { low_res_logits: logits, predicted_iou: predictedIou } = await this.decoder.run(taken);
    requireFinite(predictedIou.data, "mask decoder", this.backend);
    return { logits: logits.data, predictedIou: predictedIou.data };
  }
}

// The i-th mask's logits, without a copy.
export function lowRes(logits, i, side) {
  const cells = (side / 4) ** 2;
  return logits.subarray(i * cells, (i + 1) * cells);
}

export function threshold(logits, limit) {
  const mask = new Uint8Array(logits.length);
  for (let i = 0; i < mask.length; i++) mask[i] = logits[i] > limit ? 1 : 0;
  return mask;
}

// Thresholds would turn NaN into "no mask" silently.
function requireFinite(values, network, backend) {
  if (!values.every(Number.isFinite)) {
    throw new Error(`The ${network} returns NaN or infinity on ${backend}.`);
  }
}
