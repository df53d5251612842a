// What a user has clicked, and how the decoder takes it.

const [BACKGROUND, FOREGROUND, PADDING, UPPER_LEFT, LOWER_RIGHT] = [0, 1, -1, 2, 3];

// Prompts of one mask, { points: [{ x, y, foreground }], box: [x0, y0, x1, y1] or null }, and how they came about.
export class History {
  constructor() {
    this.states = [{ points: [], box: null }];
    this.index = 0;
  }

  get prompts() {
    return this.states[this.index];
  }

  get isEmpty() {
    return this.prompts.points.length === 0 && this.prompts.box === null;
  }

  get canUndo() {
    return this.index > 0;
  }

  get canRedo() {
    return this.index < this.states.length - 1;
  }

  addPoint(x, y, foreground) {
    this.#push({ ...this.prompts, points: [...this.prompts.points, { x, y, foreground }] });
  }

  // A box from one corner to the opposite one, which replaces an earlier box.
  setBox(x0, y0, x1, y1) {
    const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    this.#push({ ...this.prompts, box });
  }

  clear() {
    if (!this.isEmpty) this.#push({ points: [], box: null });
  }

  undo() {
    if (this.canUndo) this.index--;
  }

  redo() {
    if (this.canRedo) this.index++;
  }

  #push(state) {
    this.states = [...this.states.slice(0, this.index + 1), state];
    this.index++;
  }
}

// The decoder's points and labels of one prompt: corners of a box are points of their own, and a prompt without a box
// ends with a padding point, as in mobilesamv2.export.runtime.labelled_points.
export function decoderInputs({ points, box }, frame, padBoxes) {
  const labelled = points.map(({ x, y, foreground }) => [...frame.toModel(x, y), foreground ? FOREGROUND : BACKGROUND]);
  if (box) {
    labelled.push([...frame.toModel(box[0], box[1]), UPPER_LEFT], [...frame.toModel(box[2], box[3]), LOWER_RIGHT]);
  }
  if (!box || padBoxes) labelled.push([0, 0, PADDING]);
  return { points: labelled.map(([x, y]) => [x, y]), labels: labelled.map(([, , label]) => label) };
}

// Throw where a prompt has what the model, as model.json says, does not take.
export function requireTaken({ points, box }, about) {
  if (!about.takes_background && points.some(({ foreground }) => !foreground)) {
    throw new Error(`${about.model} takes no points on the background: undo this one.`);
  }
  const number = points.length + (box ? 2 : 0);
  if (about.max_points !== null && number > about.max_points) {
    throw new Error(`${about.model} takes ${about.max_points} points at most, a box counting as two: undo this one.`);
  }
}

// Whether the model's three masks of an ambiguous prompt are asked for instead of its one mask.
export function isAmbiguous({ points, box }) {
  return points.length === 1 && box === null;
}
