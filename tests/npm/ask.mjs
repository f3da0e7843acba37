// One call by a client SDK, its result as JSON: node ask.mjs "sdk legacy" http://…/mcp listTools '{}'

import { connect } from './connect.mjs';

const [name, url, call, params] = process.argv.slice(2);
const client = await connect(name, url);
try {
  console.log(JSON.stringify(await client[call](JSON.parse(params))));
} finally {
  await client.close();
}
