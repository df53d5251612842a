// Segment everything, as SegEvery with SAM's grid of points does.

import { lowRes, threshold } from "./model.js";
import { encode, measure } from "./masks.js";

const POINTS_PER_BATCH = 16; // a batch's logits take memory, and between batches the page hears of a stop
const BOX_NMS_THRESH = 0.7; // Source: SAM's mask generator
const STABILITY_OFFSET = 1; // of the score's two thresholds, in logits; Source: SAM's mask generator
const FOREGROUND = 1;
const PADDING = -1;

// COCO annotations of the masks of a grid of points, best first, and a map of the image: 0 where there is no mask, else
// the number of the smallest mask there, from 1. onBatch is called with the share that is done, and returns false to stop.
// Boxes and stability scores are measured where the masks are small: at the size of the model's input, not of the image.
export async function segmentEverything(segany, pointsPerSide, onBatch) {
  const { frame } = segany;
  const points = gridPoints(pointsPerSide, frame.width, frame.height);
  const candidates = [];
  for (let first = 0; first < points.length; first += POINTS_PER_BATCH) {
    if (!(await onBatch(first / points.length))) return null;
    const batch = points.slice(first, first + POINTS_PER_BATCH);
    const model = batch.map(([x, y]) => [frame.toModel(x, y), [0, 0]]);
    const { logits, predictedIou } = await segany.decode(model, batch.map(() => [FOREGROUND, PADDING]));
    batch.forEach((point, n) => candidates.push(...filtered(segany, logits, predictedIou, n, point)));
  }
  return encoded(segany, suppress(candidates));
}

// Points at the centres of a grid's cells, row by row.
export function gridPoints(perSide, width, height) {
  const centres = Array.from({ length: perSide }, (_, i) => (i + 0.5) / perSide);
  return centres.flatMap((y) => centres.map((x) => [x * width, y * height]));
}

// Those of a prompt's three masks that pass SAM's filters.
function filtered({ frame, about }, logits, predictedIou, n, point) {
  const kept = [];
  for (let i = 4 * n + 1; i < 4 * n + 4; i++) {
    if (predictedIou[i] <= about.pred_iou_thresh) continue;
    const small = lowRes(logits, i, frame.side);
    const values = frame.logitsToModel(small);
    const stability = stabilityScore(values, about.mask_threshold);
    const extent = measure(threshold(values, about.mask_threshold), frame.resizedWidth);
    if (!extent || stability < about.stability_score_thresh) continue;
    kept.push({ logits: small.slice(), bbox: extent.bbox, predictedIou: predictedIou[i], stability, point });
  }
  return kept;
}

export function stabilityScore(logits, limit) {
  let [inner, outer] = [0, 0];
  for (let i = 0; i < logits.length; i++) {
    if (logits[i] > limit + STABILITY_OFFSET) inner++;
    if (logits[i] > limit - STABILITY_OFFSET) outer++;
  }
  return outer ? inner / outer : 0;
}

// Box NMS: of masks whose boxes overlap, the one of the highest predicted IoU.
export function suppress(candidates) {
  const kept = [];
  for (const candidate of [...candidates].sort((a, b) => b.predictedIou - a.predictedIou)) {
    if (kept.every((other) => boxIou(corners(other), corners(candidate)) <= BOX_NMS_THRESH)) kept.push(candidate);
  }
  return kept;
}

// From the first to the last covered pixel, as SAM measures boxes.
function corners({ bbox: [x, y, width, height] }) {
  return [x, y, x + width - 1, y + height - 1];
}

function boxIou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const common = Math.max(0, width) * Math.max(0, height);
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  return common / (area(a) + area(b) - common) || 0;
}

function encoded({ frame, about }, candidates) {
  const annotations = [];
  const areas = [];
  const map = new Uint16Array(frame.width * frame.height);
  for (const { logits, predictedIou, stability, point } of candidates) {
    const mask = threshold(frame.logitsToOriginal(logits), about.mask_threshold);
    const measured = measure(mask, frame.width);
    if (!measured) continue;
    annotations.push({
      rle: encode(mask, frame.width, frame.height),
      ...measured,
      predicted_iou: predictedIou,
      stability_score: stability,
      point_coords: [point],
      point_labels: [FOREGROUND],
    });
    areas.push(measured.area);
    for (let i = 0; i < map.length; i++) {
      if (mask[i] && (map[i] === 0 || areas[map[i] - 1] > measured.area)) map[i] = areas.length;
    }
  }
  return { annotations, map };
}
