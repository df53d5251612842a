// The photo with a visitor's points and box. They are kept here, with their history; the server is sent all of them
// after each change, and answers with a mask for each model that is shown. Coordinates are fractions of the photo.
// Gradio calls this with `element`, `trigger`, `props` and `watch`.
const find = (selector) => element.querySelector(selector);
const panes = find('.panes'), tools = find('.tools'), line = find('.line'), empty = find('.empty');
const NOTHING = { points: [], box: null };
const DRAG_PIXELS = 6, HOVER_PAUSE_MS = 60, STEP = 0.02, SMALL_STEP = 0.005;

let photo = null; // src, width, height, quick: whether the decoder is fast enough for a preview under the pointer
let history = [NOTHING], now = 0; // states that undo and redo move through
let mode = 'object';
let sent = 0, answered = 0, isStale = false; // one request at a time; what changes meanwhile follows as one more
let drag = null, cursor = null, corner = null; // corner: where R began a box
let hover = { asked: 0, waits: false, timer: 0 };

const state = () => history[now];
const percent = (value) => `${100 * value}%`;
const make = (tag, name, parent) => {
  const made = document.createElement(tag);
  made.className = name;
  parent.append(made);
  return made;
};

// ---------------------------------------------------------------- what is shown

function showPanes(models) {
  panes.replaceChildren(...models.map((model) => {
    const figure = document.createElement('figure');
    const frame = make('div', 'frame', figure);
    frame.style.aspectRatio = `${photo.width} / ${photo.height}`;
    frame.style.setProperty('--ratio', photo.width / photo.height);
    for (const name of ['photo', 'mask', 'preview']) {
      const image = make('img', name, frame);
      image.alt = name === 'photo' ? 'Photo' : '';
      image.draggable = false;
      if (name === 'photo') image.src = photo.src;
      else image.hidden = true;
    }
    for (const name of ['marks', 'band', 'cross', 'working']) make('div', name, frame);
    make('figcaption', '', figure).textContent = models.length > 1 ? model : '';
    return figure;
  }));
  panes.dataset.count = models.length;
}

function showMarks() {
  for (const marks of panes.querySelectorAll('.marks')) {
    marks.replaceChildren();
    const { points, box } = state();
    if (box) {
      const [x0, y0, x1, y1] = box;
      Object.assign(make('div', 'box', marks).style, { left: percent(Math.min(x0, x1)), top: percent(Math.min(y0, y1)),
        width: percent(Math.abs(x1 - x0)), height: percent(Math.abs(y1 - y0)) });
    }
    for (const [x, y, isObject] of points) {
      const point = make('div', isObject ? 'point' : 'point background', marks);
      point.textContent = isObject ? '+' : '\u2212';
      Object.assign(point.style, { left: percent(x), top: percent(y) });
    }
  }
  find('[data-do=undo]').disabled = now === 0;
  find('[data-do=redo]').disabled = now === history.length - 1;
  find('[data-do=clear]').disabled = !state().points.length && !state().box;
}

function showLayer(frame, name, source) {
  const layer = frame.querySelector(`.${name}`);
  layer.hidden = !source;
  if (source) layer.src = source;
  else layer.removeAttribute('src');
}

function showBand(from, to) {
  for (const band of panes.querySelectorAll('.band')) {
    band.style.display = from ? 'block' : 'none';
    if (from) Object.assign(band.style, { left: percent(Math.min(from[0], to[0])), top: percent(Math.min(from[1], to[1])),
      width: percent(Math.abs(to[0] - from[0])), height: percent(Math.abs(to[1] - from[1])) });
  }
}

function showCross() {
  for (const cross of panes.querySelectorAll('.cross')) {
    cross.style.display = cursor ? 'block' : 'none';
    if (cursor) Object.assign(cross.style, { left: percent(cursor[0]), top: percent(cursor[1]) });
  }
  showBand(corner, cursor);
}

const say = (text, isError = false) => {
  line.textContent = text;
  line.classList.toggle('error', isError);
};
const setBusy = (busy) => {
  panes.classList.toggle('busy', busy);
  panes.setAttribute('aria-busy', busy);
};
function setMode(chosen) {
  mode = chosen;
  panes.dataset.mode = mode;
  for (const button of tools.querySelectorAll('[data-mode]')) {
    button.setAttribute('aria-checked', button.dataset.mode === mode);
    button.tabIndex = button.dataset.mode === mode ? 0 : -1;
  }
}

// ---------------------------------------------------------------- what is sent

function send() {
  hidePreview();
  if (sent > answered) {
    isStale = true;
    return;
  }
  sent += 1;
  setBusy(true);
  trigger('prompt', { number: sent, interactions: state() });
}

function settle() {
  answered = sent;
  setBusy(false);
  if (isStale) {
    isStale = false;
    send();
  }
}

function change(next) {
  history = [...history.slice(0, now + 1), next];
  now += 1;
  showMarks();
  send();
}
const addPoint = (at, isObject) => change({ ...state(), points: [...state().points, [...at, isObject ? 1 : 0]] });
const setBox = (from, to) => change({ ...state(), box: [...from, ...to] });
const ACTIONS = {
  undo: () => move(-1),
  redo: () => move(1),
  clear: () => (state().points.length || state().box) && change(NOTHING),
};
function move(step) {
  if (!(now + step in history)) return;
  now += step;
  showMarks();
  send();
}

// The mask that a click would take; only of the first model, and only while nothing else is under way.
function preview(at, isObject) {
  clearTimeout(hover.timer);
  if (!photo.quick || drag || sent > answered) return;
  hover.timer = setTimeout(() => {
    if (hover.waits || sent > answered) return;
    hover.asked += 1;
    hover.waits = true;
    const points = [...state().points, [...at, isObject ? 1 : 0]];
    trigger('pointing', { number: hover.asked, interactions: { ...state(), points } });
  }, HOVER_PAUSE_MS);
}
function hidePreview() {
  clearTimeout(hover.timer);
  hover.asked += 1; // an answer that is under way comes too late
  hover.waits = false;
  for (const frame of panes.querySelectorAll('.frame')) showLayer(frame, 'preview', null);
}

// ---------------------------------------------------------------- what the server answers

const ANSWERS = {
  photo(answer) {
    photo = answer.photo;
    empty.hidden = Boolean(photo);
    panes.hidden = tools.hidden = !photo;
    history = [NOTHING];
    now = 0;
    cursor = corner = drag = null;
    isStale = false;
    answered = sent;
    setBusy(false);
    if (photo) showPanes(answer.models);
    showMarks();
    say(answer.text);
  },
  masks(answer) {
    if (panes.dataset.count !== String(answer.panes.length)) {
      showPanes(answer.panes.map((pane) => pane.model));
      showMarks();
    }
    [...panes.children].forEach((figure, i) => {
      showLayer(figure, 'mask', answer.panes[i].mask);
      figure.querySelector('figcaption').textContent = answer.panes.length > 1 ? answer.panes[i].caption : '';
    });
    say(answer.text);
    settle();
  },
  preview(answer) {
    if (answer.number !== hover.asked) return;
    hover.waits = false;
    const frame = panes.querySelector('.frame');
    if (frame) showLayer(frame, 'preview', answer.mask);
  },
  error(answer) {
    say(answer.text, true);
    isStale = false;
    settle();
  },
};
watch('value', () => props.value && ANSWERS[props.value.kind](props.value));
// A request that was refused, because the queue is full, has no answer.
window.addEventListener('demo-refused', () => ANSWERS.error({ text: 'The page is busy: try again in a moment.' }));
window.addEventListener('demo-ask-again', () => photo && send()); // another model was chosen

// ---------------------------------------------------------------- mouse, touch and pen

const frameOf = (event) => event.target.closest('.frame');
const place = (event, frame) => {
  const box = frame.getBoundingClientRect();
  const within = (value) => Math.min(1, Math.max(0, value));
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};
const isFar = (event) => Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > DRAG_PIXELS;
const addsObject = (event) => mode !== 'background' && !event.shiftKey && !event.ctrlKey && event.button !== 2;

panes.addEventListener('pointerdown', (event) => {
  const frame = frameOf(event);
  if (!frame || event.button === 1 || !event.isPrimary) return;
  cursor = corner = null;
  showCross();
  drag = { x: event.clientX, y: event.clientY, at: place(event, frame), frame, draws: false };
  if (event.pointerType === 'mouse' || mode === 'box') panes.setPointerCapture(event.pointerId);
});
panes.addEventListener('pointermove', (event) => {
  if (drag) {
    const mayDraw = event.pointerType === 'mouse' || mode === 'box';
    drag.draws ||= mayDraw && isFar(event);
    if (drag.draws) showBand(drag.at, place(event, drag.frame));
    return;
  }
  const frame = frameOf(event);
  if (frame && event.pointerType === 'mouse') preview(place(event, frame), addsObject(event));
});
panes.addEventListener('pointerup', (event) => {
  if (!drag) return;
  const { at, frame, draws } = drag;
  const end = place(event, frame), hasArea = at[0] !== end[0] && at[1] !== end[1];
  const isTap = !isFar(event);
  drag = null;
  showBand(null);
  if (draws && !isTap && hasArea) setBox(at, end);
  else if (isTap && mode !== 'box') addPoint(at, addsObject(event));
  else if (isTap) say('Drag from one corner of the object to the opposite one.');
});
panes.addEventListener('pointercancel', () => { // the finger scrolls the page
  drag = null;
  showBand(null);
});
panes.addEventListener('pointerleave', () => photo && hidePreview());
panes.addEventListener('contextmenu', (event) => frameOf(event) && event.preventDefault());

tools.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button?.dataset.mode) setMode(button.dataset.mode);
  else if (button) ACTIONS[button.dataset.do]();
});
tools.querySelector('.modes').addEventListener('keydown', (event) => { // as in any group of radio buttons
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...tools.querySelectorAll('[data-mode]')];
  const next = buttons[(buttons.findIndex((button) => button.dataset.mode === mode) + step + 3) % 3];
  setMode(next.dataset.mode);
  next.focus();
});

// ---------------------------------------------------------------- keys

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function shortcut(event) {
  const key = event.key.toLowerCase();
  const withControl = event.ctrlKey || event.metaKey;
  if (withControl && key === 'z') return event.shiftKey ? ACTIONS.redo : ACTIONS.undo;
  if (withControl && key === 'y') return ACTIONS.redo;
  if (withControl || event.altKey) return null;
  if (key === 'delete' || key === 'backspace') return ACTIONS.clear;
  if (key === 'b') return () => setMode(mode === 'background' ? 'object' : 'background');
  if (key === 'escape') return () => { drag = corner = null; showCross(); };
  return null;
}
document.addEventListener('keydown', (event) => {
  if (!element.isConnected || !photo || !panes.offsetParent || event.target.closest('input, textarea, select')) return;
  const action = shortcut(event);
  if (!action) return;
  event.preventDefault();
  action();
});

panes.addEventListener('keydown', (event) => {
  const arrow = ARROWS[event.key], at = cursor ?? [0.5, 0.5];
  if (event.ctrlKey || event.metaKey || event.altKey || !photo) return;
  if (arrow) {
    const step = event.shiftKey ? SMALL_STEP : STEP;
    cursor = at.map((value, i) => Math.min(1, Math.max(0, value + step * arrow[i])));
    preview(cursor, mode !== 'background');
  } else if (event.key === 'Enter' || event.key === ' ') {
    cursor = at;
    addPoint(at, mode !== 'background' && !event.shiftKey);
  } else if (event.key.toLowerCase() === 'r') {
    cursor = at;
    if (!corner) corner = at;
    else {
      const from = corner;
      corner = null;
      if (from[0] !== at[0] && from[1] !== at[1]) setBox(from, at);
    }
  } else return;
  event.preventDefault();
  showCross();
});
panes.addEventListener('blur', () => {
  cursor = corner = null;
  showCross();
});

// ---------------------------------------------------------------- photos: chosen, dropped, pasted

const chooser = () => document.querySelector('input[type=file]');
function choose(files) {
  const images = [...files].filter((file) => file.type.startsWith('image/') || !file.type);
  if (!images.length) return;
  const chosen = new DataTransfer();
  chosen.items.add(images[0]);
  chooser().files = chosen.files;
  chooser().dispatchEvent(new Event('change', { bubbles: true }));
}
find('.open').addEventListener('click', () => chooser().click());
for (const name of ['dragover', 'dragleave', 'drop']) {
  element.addEventListener(name, (event) => {
    event.preventDefault();
    element.classList.toggle('over', name === 'dragover');
    if (name === 'drop') choose(event.dataTransfer.files);
  });
}
document.addEventListener('paste', (event) => element.isConnected && choose(event.clipboardData.files));

setMode('object');
