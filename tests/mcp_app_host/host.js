"use strict";

// The host's side of the MCP Apps bridge, written from the specification's revision 2026-01-26: it puts the page into a
// sandboxed frame under the policy its resource declares, answers the page's requests, and remembers all it said.

const host = {
  heard: [], // every message of the page, in order
  opened: [], // what ui/open-link was asked for
  refuseLinks: false,
  context: {},
  capabilities: { serverTools: {}, openLinks: {}, updateModelContext: { text: {} } },

  async open({ context = {}, capabilities, allow = "" }) {
    Object.assign(host.context, context);
    host.capabilities = capabilities ?? host.capabilities;
    const { text, ui } = await (await fetch("/page")).json();
    host.frame = document.createElement("iframe");
    host.frame.sandbox = "allow-scripts";
    host.frame.allow = allow;
    host.frame.srcdoc = withPolicy(text, policy(ui.csp));
    const ready = new Promise((resolve) => (host.initialized = resolve));
    document.body.append(host.frame);
    await ready;
  },

  notify(method, params) {
    host.frame.contentWindow.postMessage({ jsonrpc: "2.0", method, params }, "*");
  },

  request(method, params) {
    const id = `host-${host.heard.length}-${method}`;
    host.frame.contentWindow.postMessage({ jsonrpc: "2.0", id, method, params }, "*");
    return new Promise((resolve) => host.answers.set(id, resolve));
  },

  answers: new Map(),

  async call(name, given) {
    const answer = await fetch("/call", { method: "POST", body: JSON.stringify({ name, arguments: given }) });
    return answer.json();
  },

  // What a host does with a call of the model: the page sees its arguments, then its result.
  async modelCalls(name, given) {
    host.notify("ui/notifications/tool-input", { arguments: given });
    host.notify("ui/notifications/tool-result", (await host.call(name, given)).result);
  },
};

function policy({ resourceDomains = [], connectDomains = [], frameDomains = [], baseUriDomains = [] } = {}) {
  const resources = resourceDomains.join(" ");
  return [
    "default-src 'none'",
    `script-src 'self' 'unsafe-inline' ${resources}`,
    `style-src 'self' 'unsafe-inline' ${resources}`,
    `connect-src 'self' ${connectDomains.join(" ")}`,
    `img-src 'self' data: ${resources}`,
    `font-src 'self' ${resources}`,
    `media-src 'self' data: ${resources}`,
    `frame-src ${frameDomains.join(" ") || "'none'"}`,
    "object-src 'none'",
    `base-uri ${baseUriDomains.join(" ") || "'self'"}`,
  ].join("; ");
}

function withPolicy(text, content) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const meta = page.createElement("meta");
  meta.httpEquiv = "Content-Security-Policy";
  meta.content = content;
  page.head.prepend(meta);
  return `<!doctype html>${page.documentElement.outerHTML}`;
}

const requests = {
  "ui/initialize": async () => ({
    result: {
      protocolVersion: "2026-01-26",
      hostInfo: { name: "test host", version: "1" },
      hostCapabilities: host.capabilities,
      hostContext: host.context,
    },
  }),
  "tools/call": async ({ name, arguments: given }) => host.call(name, given),
  "ui/open-link": async ({ url }) => {
    host.opened.push(url);
    return host.refuseLinks ? { error: { code: -32000, message: "Link opening denied" } } : { result: {} };
  },
  "ui/update-model-context": async () => ({ result: {} }),
};

window.addEventListener("message", async ({ source, data }) => {
  if (source !== host.frame?.contentWindow) return;
  host.heard.push(data);
  const { id, method, params } = data;
  if (method === "ui/notifications/initialized") host.initialized();
  if (method === "ui/notifications/size-changed") host.frame.style.height = `${params.height}px`;
  if (method === undefined) host.answers.get(id)?.(data);
  else if (id !== undefined) {
    const answer = (await requests[method]?.(params)) ?? { error: { code: -32601, message: `unknown ${method}` } };
    source.postMessage({ jsonrpc: "2.0", id, ...answer }, "*");
  }
});
