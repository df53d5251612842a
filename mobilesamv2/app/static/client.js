// Calls to the model, which runs in worker.js.

export class ModelClient {
  // onLoaded(loaded, total): bytes of the model that are here.
  constructor(onLoaded) {
    this.waiting = new Map();
    this.latest = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }) => {
      if (data.id === undefined) return onLoaded(data.loaded, data.total);
      const { resolve, reject, onDone } = this.waiting.get(data.id);
      if (data.done !== undefined) return onDone(data.done);
      this.waiting.delete(data.id);
      if (data.error === undefined) resolve(data.result);
      else reject(new Error(data.error));
    });
    this.worker.addEventListener("error", () => {
      for (const { reject } of this.waiting.values()) reject(new Error("worker.js can't be loaded or has stopped."));
      this.waiting.clear();
    });
  }

  // onDone(share): how much of a long call is done.
  call(call, values = {}, { transfer = [], onDone = () => {} } = {}) {
    const id = ++this.latest;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, onDone });
      this.worker.postMessage({ ...values, id, call }, transfer);
    });
  }
}
