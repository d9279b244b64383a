// The player's page: follows the player's stack of one challenge, and starts, extends and stops it.
//
// The token is in this variable and nowhere else: not in the address, not in a cookie, not in the
// browser's storage.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const app = $("app");
  const path = `/api/challenges/${app.dataset.challenge}/stack`;
  const origins = app.dataset.origins.split(" ").filter(Boolean);

  let token = null;
  let following = null; // The AbortController of the stream.
  let seen = null; // What the server said last.
  let skew = 0; // The server's clock less this one's, in milliseconds.
  let shownAddresses = "";
  let announced = Infinity;

  // ---- the token

  function take(value) {
    if (typeof value !== "string" || value === "" || value === token) return;
    token = value;
    say("");
    follow();
  }

  function fromFragment() {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (!given) return;
    history.replaceState(null, "", location.pathname);
    take(given);
  }

  function askParent() {
    if (window.parent === window) return;
    for (const origin of origins) {
      // It is delivered only where the parent is of that origin.
      window.parent.postMessage({ type: "stackd:token-needed" }, origin);
    }
  }

  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || !origins.includes(event.origin)) return;
    if (event.data && event.data.type === "stackd:token") take(event.data.token);
  });
  window.addEventListener("hashchange", fromFragment);

  function signedOut(why) {
    token = null;
    seen = null;
    if (following) following.abort();
    show("signed-out", "Not signed in", why);
    askParent();
  }

  // ---- what the server says

  async function follow() {
    if (following) following.abort();
    const mine = new AbortController();
    following = mine;
    let pause = 500;
    while (!mine.signal.aborted && token) {
      try {
        const answer = await fetch(`${path}/events`, {
          headers: { Authorization: `Bearer ${token}` },
          signal: mine.signal,
          cache: "no-store",
        });
        if (answer.status === 401) return signedOut(OVER);
        if (answer.status === 404) return show("failed", "Closed", "This challenge is not open.");
        if (!answer.ok) throw new Error(String(answer.status));
        pause = 500;
        for await (const state of states(answer.body)) {
          if (mine.signal.aborted) return;
          seen = state;
          skew = Date.parse(state.now) - Date.now();
          draw();
        }
      } catch (error) {
        if (mine.signal.aborted) return;
        show("loading", "Reconnecting…", "The server does not answer; trying again.");
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(pause * 2, 10000);
    }
  }

  async function* states(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const events = rest.split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length > 0) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
      }
    }
  }

  // ---- what the player does

  const OVER = "Your session on the platform has ended. Open the challenge there again.";
  const WORDS = {
    "stack limit reached": "You have as many stacks as you may. Stop another one first.",
    "challenge already solved": "You have solved this challenge already.",
    "challenge locked": "This challenge is locked for you.",
    "stack not enabled for challenge": "This challenge has no stack to start.",
    "stack provisioner unavailable": "There is no room right now. Try again in a moment.",
    "stack cannot be extended": "It cannot be extended any further now.",
    "stack not found": "It is gone already.",
  };

  async function call(method, to, button) {
    if (!token) return signedOut(OVER);
    const buttons = [$("start"), $("extend"), $("stop")];
    for (const each of buttons) each.disabled = true;
    say("");
    try {
      const answer = await fetch(to, { method, headers: { Authorization: `Bearer ${token}` } });
      if (answer.status === 401) return signedOut(OVER);
      if (answer.ok) return;
      const body = await answer.json().catch(() => ({}));
      if (body.rate_limit) {
        const wait = body.rate_limit.reset_seconds;
        say(`You have just started one. Try again in ${wait} second${wait === 1 ? "" : "s"}.`);
      } else {
        say(WORDS[body.error] || body.error || "That did not work. Try again.");
      }
    } catch {
      say("The server cannot be reached. Try again.");
    } finally {
      for (const each of buttons) each.disabled = false;
      if (button && !button.hidden) button.focus();
    }
  }

  $("start").addEventListener("click", () => call("POST", path, $("start")));
  $("extend").addEventListener("click", () => call("POST", `${path}/renew`, $("extend")));
  $("stop").addEventListener("click", () => $("confirm").showModal());
  $("confirm").addEventListener("close", () => {
    const stop = $("confirm").returnValue === "stop";
    $("confirm").returnValue = "";
    if (stop) call("DELETE", path, $("start"));
    else $("stop").focus();
  });

  // ---- what the player sees

  function say(problem) {
    $("problem").textContent = problem;
    $("problem").hidden = problem === "";
  }

  function text(id, value) {
    // A live region is read aloud when it is written, so only what is new is written.
    if ($(id).textContent !== value) $(id).textContent = value;
  }

  function show(state, status, explain, parts = {}) {
    app.dataset.state = state;
    text("status", status);
    text("explain", explain);
    $("progress").hidden = !parts.busy;
    $("reach").hidden = !parts.reach;
    $("clock").hidden = !parts.clock;
    $("start").hidden = !parts.start;
    $("extend").hidden = !parts.extend;
    $("stop").hidden = !parts.stop;
    text("note", parts.note || "");
    if (!parts.reach) {
      shownAddresses = "";
      $("addresses").replaceChildren();
    }
  }

  function draw() {
    const { challenge, stack, queue, ended, solved, locked } = seen;
    if (challenge) {
      text("name", challenge.name);
      document.title = challenge.name;
    }
    if (stack) {
      const parts = { stop: true, clock: true, extend: extendable() };
      if (stack.status === "running") {
        addresses(stack, challenge ? challenge.protocol : "http");
        return show("running", "Running", stack.message || "", { ...parts, reach: true }), tick();
      }
      if (queue) {
        const explain = `Place ${queue.place} of ${queue.length} in the queue.`;
        show("queued", "Waiting for its turn", explain, { ...parts, busy: true });
      } else {
        show("creating", "Starting…", stack.message || "", { ...parts, busy: true });
      }
      return tick();
    }
    announced = Infinity;
    if (!challenge) return show("failed", "Closed", "This challenge is not open any more.");
    if (solved) return show("idle", "Solved", "You have solved this challenge. Well done!");
    if (locked) return show("failed", "Locked", "This challenge is locked for you.");
    if (!challenge.stack_enabled) return show("idle", "Nothing to start", "This challenge needs no stack.");
    const life = `A stack of your own lives for ${span(challenge.ttl_seconds)}.`;
    if (ended) {
      const why = ended.message ? `: ${ended.message}` : "";
      return show("failed", "It has ended", `Your last stack ended by itself${why}.`, { start: true, note: life });
    }
    show("idle", "Not started", "Start it when you are ready.", { start: true, note: life });
  }

  function addresses(stack, protocol) {
    const host = stack.node_public_ip || location.hostname.replace(/^\[|\]$/g, "");
    const inUrl = host.includes(":") ? `[${host}]` : host;
    const own = { container_port: stack.target_port, node_port: stack.node_port, protocol: "TCP" };
    const ports = (stack.ports || [own]).filter((port) => port.node_port);
    const rows = [];
    ports.forEach((port, index) => {
      const number = ports.length > 1 ? ` ${port.container_port}` : "";
      if (port.protocol === "UDP") {
        rows.push([`udp${number}`, `nc -u ${host} ${port.node_port}`, false]);
      } else if (index === 0 && protocol === "http") {
        const url = `http://${inUrl}:${port.node_port}/`;
        rows.push([`browser${number}`, url, true], [`curl${number}`, `curl ${url}`, false]);
      } else {
        rows.push([`nc${number}`, `nc ${host} ${port.node_port}`, false]);
      }
    });
    const key = JSON.stringify(rows);
    if (key === shownAddresses) return;
    shownAddresses = key;
    $("addresses").replaceChildren(...rows.map(([kind, value, isLink]) => {
      const row = $("address").content.cloneNode(true);
      row.querySelector(".kind").textContent = kind;
      const [link, code] = [row.querySelector("a"), row.querySelector("code")];
      const place = isLink ? link : code;
      (isLink ? code : link).remove();
      place.textContent = value;
      if (isLink) Object.assign(link, { href: value, target: "_blank", rel: "noopener noreferrer" });
      const button = row.querySelector("button");
      button.setAttribute("aria-label", `Copy ${kind} address`);
      button.addEventListener("click", () => copy(value, place, button));
      return row;
    }));
  }

  async function copy(value, place, button) {
    try {
      await navigator.clipboard.writeText(value);
    } catch {
      // Without a secure context, or in a frame that may not: by selection.
      getSelection().selectAllChildren(place);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  // ---- time

  // Whether extending could add something: there is a longest life, which only the server keeps.
  function extendable() {
    const { stack, challenge } = seen;
    if (!challenge) return false;
    const last = Date.parse(stack.created_at) + challenge.longest_seconds * 1000;
    return last - Date.parse(stack.ttl_expires_at) > 1000;
  }

  function span(seconds) {
    const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
    const parts = [];
    for (const [name, unit] of units) {
      const count = Math.floor(seconds / unit);
      seconds -= count * unit;
      if (count > 0) parts.push(`${count} ${name}${count === 1 ? "" : "s"}`);
    }
    return parts.slice(0, 2).join(" ") || "0 seconds";
  }

  function time(at) {
    return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  }

  function tick() {
    if (!seen || !seen.stack) return;
    const end = Date.parse(seen.stack.ttl_expires_at);
    const left = Math.max(0, Math.round((end - Date.now() - skew) / 1000));
    const two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(left / 3600);
    const rest = `${two(Math.floor(left / 60) % 60)}:${two(left % 60)}`;
    $("left").textContent = hours > 0 ? `${hours}:${rest}` : rest;
    $("until").textContent = `until ${time(seen.stack.ttl_expires_at)}`;
    $("clock").classList.toggle("short", left < 300);
    for (const mark of [300, 60]) {
      if (left <= mark && announced > mark) {
        announced = mark;
        if (app.dataset.state === "running") text("explain", `Less than ${span(mark)} left.`);
      }
    }
    if (left > 300) announced = Infinity;
  }

  setInterval(tick, 1000);
  show("signed-out", "Not signed in", "Open this challenge from the platform, which signs you in.");
  fromFragment();
  if (!token) askParent();
})();
