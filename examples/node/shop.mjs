// A shop and its sellers' platform in one file, for Node 18 or newer: signs, seals, publishes, reads and checks.
//
//   npm ci
//   node shop.mjs keygen acme.key                       prints the public key for `holdfast shop key add`
//   node shop.mjs pay acme o-1
//   node shop.mjs enrol acme s-1 "correct horse battery"
//   node shop.mjs withdraw acme s-1 w-1 1000 "correct horse battery"
//
// It needs SHOP_BROKER_URL (or HOLDFAST_BROKER_URL), SHOP.key, and in holdfast-keys.json what
// `holdfast keys public --json` prints.

import { createPrivateKey, createPublicKey, generateKeyPairSync, randomUUID, sign, verify } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import amqp from "amqplib";
import { CompactEncrypt, importJWK } from "jose";

const ANSWER_SECONDS = 30;
const SINGLE = "application/cloudevents+json";

// Write a new private key as a JWK; return the public one as Holdfast takes it.
function keygen(file) {
  const jwk = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
  writeFileSync(file, JSON.stringify(jwk), { mode: 0o600, flag: "wx" });
  return Buffer.from(jwk.x, "base64url").toString("base64");
}

// Sign and publish; resolves when the broker has the event on disk, rejects when it does not take it.
async function publish(channel, key, event) {
  const body = Buffer.from(JSON.stringify(event));
  const now = String(Math.floor(Date.now() / 1000));
  const signed = Buffer.concat([Buffer.from(`${event.id}.${now}.`), body]);
  const headers = {
    "webhook-id": event.id,
    "webhook-timestamp": now,
    "webhook-signature": "v1a," + sign(null, signed, key).toString("base64"),
  };
  channel.publish("holdfast.inbound", event.type, body, {
    contentType: SINGLE,
    persistent: true,
    mandatory: true,
    headers,
  });
  await channel.waitForConfirms();
}

// Whether one of Holdfast's keys has signed this message.
function isSigned(jwks, message) {
  const { "webhook-id": id, "webhook-timestamp": at, "webhook-signature": signatures } = message.properties.headers;
  const signed = Buffer.concat([Buffer.from(`${id}.${at}.`), message.content]);
  const keys = jwks.filter((jwk) => jwk.use === "sig").map((jwk) => createPublicKey({ key: jwk, format: "jwk" }));
  return signatures
    .split(" ")
    .filter((part) => part.startsWith("v1a,"))
    .some((part) => keys.some((key) => verify(null, signed, key, Buffer.from(part.slice(4), "base64"))));
}

// Encrypt to Holdfast's key (X25519); only Holdfast can read it.
async function seal(jwk, inside) {
  return new CompactEncrypt(new TextEncoder().encode(JSON.stringify(inside)))
    .setProtectedHeader({ alg: "ECDH-ES", enc: "A256GCM", kid: jwk.kid })
    .encrypt(await importJWK(jwk, "ECDH-ES"));
}

// A buyer has paid 12.50 EUR; amounts are cents.
function orderPaid(orderId) {
  return {
    order_id: orderId,
    buyer_id: "b-7",
    amount: 1250,
    currency: "EUR",
    paid_at: new Date().toISOString(),
    bank_reference: `ACME ${orderId}`, // what the buyer's transfer will carry
    splits: [
      { seller_id: "s-1", amount: 1000 },
      { seller_id: "s-2", amount: 250 },
    ],
  };
}

// A seller chooses a withdrawal password and an account; both travel sealed, for this event only.
async function sellerEnrolled(shop, eventId, jwk, seller, password) {
  const outside = { seller_id: seller, destination_id: "d-1" };
  const destination = { type: "iban", iban: "DE89370400440532013000", holder_name: "Seller One" };
  const inside = { ...outside, shop_id: shop, event_id: eventId, password, destination };
  return { ...outside, sealed: await seal(jwk, inside) };
}

// The seller takes money out; the whole request is sealed again, beside the password.
async function withdrawalRequested(shop, eventId, jwk, [seller, withdrawal, amount, password]) {
  const outside = {
    withdrawal_id: withdrawal,
    seller_id: seller,
    amount: Number(amount),
    currency: "EUR",
    destination_id: "d-1",
  };
  return { ...outside, sealed: await seal(jwk, { ...outside, shop_id: shop, event_id: eventId, password }) };
}

// Read the shop's events until the answer to one of ours; a real shop keeps each by its id before it acknowledges it.
function answerTo(channel, shop, eventId, jwks) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("no answer")), ANSWER_SECONDS * 1000);
    channel.consume(`events.${shop}`, (message) => {
      if (!isSigned(jwks, message)) {
        reject(new Error("a message is not signed by Holdfast"));
        return;
      }
      const content = JSON.parse(message.content.toString());
      channel.ack(message);
      for (const event of Array.isArray(content) ? content : [content]) {
        if (event.data.event_id === eventId) {
          clearTimeout(timer);
          resolve(event);
        }
      }
    });
  });
}

async function main([command, shop, ...rest]) {
  if (command === "keygen") {
    console.log(keygen(shop));
    return 0;
  }
  const jwks = JSON.parse(readFileSync("holdfast-keys.json", "utf8")).keys;
  const sealing = jwks.find((jwk) => jwk.use === "enc");
  const key = createPrivateKey({ key: JSON.parse(readFileSync(`${shop}.key`, "utf8")), format: "jwk" });
  const id = randomUUID();
  const [type, data] =
    command === "pay"
      ? ["order.paid", orderPaid(rest[0])]
      : command === "enrol"
        ? ["seller.enrolled", await sellerEnrolled(shop, id, sealing, rest[0], rest[1])]
        : ["withdrawal.requested", await withdrawalRequested(shop, id, sealing, rest)];
  const connection = await amqp.connect(process.env.SHOP_BROKER_URL || process.env.HOLDFAST_BROKER_URL);
  try {
    const channel = await connection.createConfirmChannel();
    await publish(channel, key, {
      specversion: "1.0",
      id,
      source: `/shops/${shop}`,
      type,
      time: new Date().toISOString(),
      datacontenttype: "application/json",
      data,
    });
    const answer = await answerTo(channel, shop, id, jwks);
    console.log(JSON.stringify(answer, null, 2));
    return answer.type.endsWith(".rejected") ? 1 : 0;
  } finally {
    await connection.close();
  }
}

process.exitCode = await main(process.argv.slice(2));
