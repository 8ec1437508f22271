// Another language's shard_of: prints, for the golden vectors on stdin, the shard of each.
'use strict';

const zlib = require('node:zlib');

// Node has zlib.crc32 from 20.15 on; before, these few lines are the same.
const TABLE = Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});
const ownCrc32 = (bytes) => ~bytes.reduce((crc, byte) => (crc >>> 8) ^ TABLE[(crc ^ byte) & 0xff], ~0) >>> 0;
const crc32 = zlib.crc32 ?? ownCrc32;

function shardOf(vector) {
  const shards = BigInt(vector.shards);
  if (vector.keyType === 'string') return Number(BigInt(crc32(Buffer.from(vector.key, 'utf8'))) % shards);
  return Number(((BigInt(vector.key) % shards) + shards) % shards);
}

let text = '';
process.stdin.on('data', (part) => { text += part; });
process.stdin.on('end', () => console.log(JSON.stringify(JSON.parse(text).map(shardOf))));
