// How each client SDK makes a client and its transport. The releases of the first one know only the handshake; the
// second one is held to exactly one era, so that a fallback to the other cannot pass for it.

async function firstSdk(about, url, name = '@modelcontextprotocol/sdk') {
  const { Client } = await import(`${name}/client/index.js`);
  const { StreamableHTTPClientTransport } = await import(`${name}/client/streamableHttp.js`);
  return [new Client(about), new StreamableHTTPClientTransport(new URL(url))];
}

async function secondSdk(about, url, mode) {
  const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client');
  return [new Client(about, { versionNegotiation: { mode } }), new StreamableHTTPClientTransport(new URL(url))];
}

const MAKERS = {
  'sdk-1.10 legacy': (about, url) => firstSdk(about, url, 'sdk-1.10'),
  'sdk-1.17 legacy': (about, url) => firstSdk(about, url, 'sdk-1.17'),
  'sdk-1.22 legacy': (about, url) => firstSdk(about, url, 'sdk-1.22'),
  'sdk legacy': firstSdk,
  'client legacy': (about, url) => secondSdk(about, url, 'legacy'),
  'client modern': (about, url) => secondSdk(about, url, { pin: '2026-07-28' }),
};

export async function connect(name, url) {
  const [client, transport] = await MAKERS[name]({ name: 'mcp-image-sidecar-tests', version: '1' }, url);
  await client.connect(transport);
  return client;
}
