// The search runs in a worker, which browsers refuse to a page that is opened from the disk: there, its script runs in a
// hidden frame. The name has "iframe-worker" in it for the plugin "offline", which would fetch such a script otherwise.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.scope = frame.contentWindow;
      const inside = frame.contentDocument;
      inside.open(); // from here on the frame has one document, in Firefox too
      inside.write("<body></body>");
      inside.close();
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.createElement("script");
      script.src = url;
      this.loaded = new Promise((resolve) => script.addEventListener("load", resolve));
      inside.body.append(script);
    }

    postMessage(data) {
      const message = new MessageEvent("message", { data: structuredClone(data) });
      this.loaded.then(() => this.scope.dispatchEvent(message));
    }
  };
}
