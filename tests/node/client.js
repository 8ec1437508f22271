// A client that is not Python: it has the protos and nothing else of ours.
//
//   node client.js PROTO_FOLDER HOME_GATEWAY FOREIGN_GATEWAY KEY
//
// Writes, reads, lists and deletes one row, is denied one, and prints what it saw as one JSON object.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const [protos, home, foreign, key] = process.argv.slice(2);
const REGION = 'DE';
const SECONDS = 10;

const definition = loader.loadSync(path.join('regiongate', 'v1', 'row_service.proto'), {
  includeDirs: [protos],
  longs: String,
  enums: String,
  oneofs: true,
});
const { RowService } = grpc.loadPackageDefinition(definition).regiongate.v1;

// The two public messages of google.rpc that an error's details are made of.
const rpc = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`).root;

function errorInfo(error) {
  const [wire] = error.metadata.get('grpc-status-details-bin');
  if (!wire) return {};
  const status = rpc.lookupType('Status').decode(wire);
  const detail = status.details.find((each) => each.typeUrl.endsWith('/google.rpc.ErrorInfo'));
  if (!detail) return {};
  const { reason, domain, metadata } = rpc.lookupType('ErrorInfo').decode(detail.value);
  return { reason, domain, metadata };
}

function call(client, method, request, words = {}) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(words)) metadata.set(name, value);
  const deadline = new Date(Date.now() + SECONDS * 1000);
  return new Promise((resolve, reject) => {
    client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return { status: grpc.status[error.code], ...errorInfo(error) };
  }
  return { status: 'OK' };
}

// Several operations in one message of a kept stream; answers come in any order and are told apart by id.
function exchange(client, operations) {
  return new Promise((resolve, reject) => {
    const stream = client.exchange({ deadline: new Date(Date.now() + SECONDS * 1000) });
    const results = {};
    stream.on('data', (message) => {
      for (const result of message.results) results[result.id] = result.outcome;
      if (Object.keys(results).length === operations.length) stream.end();
    });
    stream.on('end', () => resolve(results));
    stream.on('error', reject);
    stream.write({ operations, purpose: '', timeoutMs: SECONDS * 1000 });
  });
}

async function main() {
  const client = new RowService(home, grpc.credentials.createInsecure());
  const abroad = new RowService(foreign, grpc.credentials.createInsecure());
  const row = { dataset: 'customers', regionCode: REGION, key: { stringKey: key } };
  const columns = { name: { stringValue: `Grüße ${key}` }, spend: { int64Value: '9007199254740993' } };

  const put = await call(client, 'putRow', { ...row, columns, requestId: `node-${key}` });
  const again = await call(client, 'putRow', { ...row, columns, requestId: `node-${key}` });
  const got = await call(client, 'getRow', row);
  const listed = await call(client, 'listRows', { dataset: 'customers', regionCode: REGION, filter: `name = "Grüße ${key}"` });
  const support = await call(abroad, 'getRow', row, { 'x-regiongate-purpose': 'support' });
  const denied = await refusal(call(abroad, 'getRow', row));
  const unknown = await refusal(call(client, 'getRow', { ...row, regionCode: 'ZZ' }));
  const exchanged = await exchange(client, [
    { id: '1', ...row, get: {} },
    { id: '2', ...row, key: { stringKey: `${key}-none` }, get: {} },
    { id: '3', ...row, put: { columns }, ifVersion: '0' },
  ]);
  const deleted = await call(client, 'deleteRow', { ...row, ifVersion: got.row.version });
  const gone = await refusal(call(client, 'getRow', row));
  client.close();
  abroad.close();

  console.log(JSON.stringify({
    isReplayed: put.receipt.version === again.receipt.version,
    name: got.row.columns.name.stringValue,
    spend: got.row.columns.spend.int64Value,
    rule: got.decision.rule,
    listed: listed.rows.map((each) => each.key.stringKey),
    support: { columns: Object.keys(support.row.columns), withheld: support.decision.withheld, rule: support.decision.rule },
    denied,
    unknown,
    exchanged,
    isNewer: Number(deleted.receipt.version) > Number(got.row.version),
    gone,
  }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
