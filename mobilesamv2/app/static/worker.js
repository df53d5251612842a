// Runs the model beside the page, which stays responsive. Messages are { id, call, ...arguments }; answers are { id, ... }.

import { segmentEverything } from "./everything.js";
import { SegAny } from "./model.js";

let segany = null;
let stoppedBefore = 0; // calls with a lower id

const calls = {
  async load({ backend }) {
    const about = await (await fetched("model/model.json")).json();
    const chosen = backend ?? ((await hasGpu()) ? "webgpu" : "wasm");
    if (!(chosen in about.onnxruntime)) throw new Error(`backend must be wasm or webgpu, got ${chosen}.`);
    try {
      segany = await load(about, chosen);
    } catch (error) {
      if (backend || chosen === "wasm") throw error;
      segany = await load(about, "wasm");
    }
    return { about };
  },

  async setImage({ rgba, width, height }) {
    const begin = performance.now();
    try {
      await segany.setImage(rgba, width, height);
    } catch (error) {
      if (segany.backend !== "webgpu") throw error;
      segany = await load(segany.about, "wasm"); // WebGPU is young: what it can't compute, the processor can
      await segany.setImage(rgba, width, height);
    }
    return { ms: performance.now() - begin, backend: segany.backend };
  },

  async predict({ prompts }) {
    const begin = performance.now();
    const { mask, predictedIou } = await segany.predict(prompts);
    return { mask, predictedIou, ms: performance.now() - begin, transfer: [mask.buffer] };
  },

  async everything({ id, pointsPerSide }) {
    const begin = performance.now();
    const found = await segmentEverything(segany, pointsPerSide, async (done) => {
      postMessage({ id, done });
      await new Promise((resolve) => setTimeout(resolve)); // so that a stop can arrive
      return id > stoppedBefore;
    });
    return found ? { ...found, ms: performance.now() - begin, transfer: [found.map.buffer] } : { stopped: true };
  },

  stop({ id }) {
    stoppedBefore = id;
    return {};
  },
};

// Calls wait for each other, except for a stop.
let previous = Promise.resolve();
addEventListener("message", ({ data }) => {
  const answer = async () => {
    try {
      if (!segany && data.call !== "load") throw new Error("The model is not loaded: load the page again.");
      const { transfer = [], ...result } = await calls[data.call](data);
      postMessage({ id: data.id, result }, transfer);
    } catch (error) {
      postMessage({ id: data.id, error: error.message ?? String(error) });
    }
  };
  if (data.call === "stop") answer();
  else previous = previous.then(answer);
});

// Whether there is WebGPU on a real graphics processor, not one that the processor imitates.
async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
}

async function load(about, backend) {
  const { script, glue, wasm } = about.onnxruntime[backend];
  const parts = [wasm, about.graphs.encoder, about.graphs.decoder];
  const total = parts.reduce((sum, part) => sum + part.nbytes, 0);
  let loaded = 0;
  const bytes = [];
  for (const { file } of parts) {
    bytes.push(await readAll(await fetched(file), (count) => postMessage({ loaded: (loaded += count), total })));
  }
  const ort = await import(new URL(script.file, import.meta.url));
  ort.env.wasm.wasmPaths = { mjs: new URL(glue.file, import.meta.url).href };
  ort.env.wasm.wasmBinary = bytes[0];
  // threads share memory, which browsers allow where the server sends the headers of cross-origin isolation
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const options = { executionProviders: [backend], logSeverityLevel: 3 }; // errors only
  const encoder = await ort.InferenceSession.create(bytes[1], options);
  const decoder = await ort.InferenceSession.create(bytes[2], options);
  return new SegAny(ort, encoder, decoder, about, backend);
}

async function fetched(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`${file} can't be loaded: HTTP status ${response.status}.`);
  return response;
}

async function readAll(response, onChunk) {
  const chunks = [];
  const reader = response.body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    chunks.push(value);
    onChunk(value.length);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}
