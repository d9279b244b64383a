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
  let refused = null; // The last token that was not good.
  let again = 0; // How often that one is tried once more: its time may be about to come.
  let asking = 0; // The timer of the next question to the platform.
  let patience = 0; // How long until that question, in milliseconds.
  let following = null; // The AbortController of the stream.
  let seen = null; // What the server said last.
  let skew = 0; // The server's clock less this one's, in milliseconds.
  let protocol = null; // What the stack speaks, as far as it was said.
  let calling = false;
  let shownAddresses = "";

  // ---- the token

  function take(value) {
    // A platform whose own session is over has none but the refused one, and gives it every time.
    if (typeof value !== "string" || value === "" || value === token || value === refused) return;
    again = 3;
    clearTimeout(asking);
    asking = 0;
    use(value);
  }

  function use(value) {
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

  // Asks the platform's page for a token, at once and then ever less often, until one is good.
  function ask() {
    if (window.parent === window || asking) return;
    asking = setTimeout(() => {
      asking = 0;
      for (const origin of origins) {
        // It is delivered only where the parent is of that origin.
        window.parent.postMessage({ type: "stackd:token-needed" }, origin);
      }
      patience = Math.min(Math.max(patience * 2, 1000), 60000);
      ask();
    }, patience);
  }

  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || !origins.includes(event.origin)) return;
    if (event.data && event.data.type === "stackd:token") take(event.data.token);
  });
  window.addEventListener("hashchange", fromFragment);

  const bearer = (used) => ({ Authorization: `Bearer ${used}` });

  // Whether a token says of itself that its time is over.
  function hasEnded(value) {
    try {
      const claims = value.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
      return JSON.parse(atob(claims)).exp * 1000 <= Date.now();
    } catch {
      return false;
    }
  }

  // The server has not taken this token.
  function refuse(used) {
    if (used !== token) return; // There is a newer one.
    refused = token;
    token = null;
    seen = null;
    following?.abort();
    show("signed-out", "Not signed in", OVER);
    if (again > 0) {
      again -= 1;
      setTimeout(() => {
        if (token === null && refused === used && !hasEnded(used)) use(used);
      }, 3000);
    }
    ask();
  }

  // ---- what the server says

  // A browser has few connections to one server, and a page that nobody sees needs none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) following?.abort();
    else if (token) follow();
  });

  async function follow() {
    following?.abort();
    if (document.hidden) return;
    const mine = new AbortController();
    following = mine;
    let pause = 500;
    const used = token;
    while (!mine.signal.aborted) {
      // A connection may be dead without a word; the server says something every 15 seconds.
      const line = new AbortController();
      const cut = () => line.abort();
      mine.signal.addEventListener("abort", cut);
      let deaf = 0;
      let trouble = "The server does not answer. Trying again.";
      const heard = () => { clearTimeout(deaf); deaf = setTimeout(cut, 40000); };
      try {
        heard();
        const answer = await fetch(`${path}/events`, {
          headers: bearer(used),
          signal: line.signal,
          cache: "no-store",
        });
        if (answer.status === 401) return refuse(used);
        if (answer.status === 503) trouble = WORDS["stack feature disabled"];
        const closed = answer.status === 404;
        if (!answer.ok && !closed) throw new Error(String(answer.status));
        // It was good: when it is not any more, it has ended.
        again = 0;
        patience = 0;
        clearTimeout(asking);
        asking = 0;
        if (closed) {
          // It may be opened yet.
          show("failed", "Closed", CLOSED);
          pause = 10000;
        } else {
          for await (const state of states(answer.body, heard)) {
            if (mine.signal.aborted) return;
            pause = 500;
            seen = state;
            skew = Date.parse(state.now) - Date.now();
            draw();
          }
        }
      } catch {
        if (mine.signal.aborted) return;
        show("loading", "Reconnecting…", trouble);
      } finally {
        clearTimeout(deaf);
        mine.signal.removeEventListener("abort", cut);
        line.abort();
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(pause * 2, 10000);
    }
  }

  async function* states(body, heard) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
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
  const CLOSED = "This challenge is not open.";
  const WORDS = {
    "challenge not found": CLOSED,
    "stack limit reached": "You have as many stacks as you may. Stop another one first.",
    "challenge already solved": "You have solved this challenge already.",
    "challenge locked": "This challenge is locked for you.",
    "stack not enabled for challenge": "This challenge has no stack to start.",
    "stack provisioner unavailable": "There is no room right now. Try again in a moment.",
    "stack feature disabled": "Nothing can be started here at the moment.",
    "stack cannot be extended": "It cannot be extended any further now.",
    "stack not found": "It is gone already.",
  };

  async function call(method, to, done = () => {}) {
    // The buttons stay as they are: one that is disabled would lose the focus.
    if (calling || !token) return;
    const used = token;
    busy(true);
    say("");
    tell("");
    try {
      const answer = await fetch(to, { method, headers: bearer(used) });
      if (answer.status === 401) return refuse(used);
      const body = await answer.json().catch(() => ({}));
      if (answer.ok) return done(body);
      if (body.rate_limit) {
        const wait = body.rate_limit.reset_seconds;
        say(`You have just started one. Try again in ${wait} second${wait === 1 ? "" : "s"}.`);
      } else {
        say(WORDS[body.error] || body.error || "That did not work. Try again.");
      }
    } catch {
      say("The server cannot be reached. Try again.");
    } finally {
      busy(false);
    }
  }

  function busy(now) {
    calling = now;
    for (const id of ["start", "extend", "stop"]) $(id).setAttribute("aria-disabled", now);
  }

  const extended = (stack) => tell(`Extended until ${time(stack.ttl_expires_at)}.`);

  $("start").addEventListener("click", () => call("POST", path));
  $("extend").addEventListener("click", () => call("POST", `${path}/renew`, extended));
  $("stop").addEventListener("click", () => { if (!calling) $("confirm").showModal(); });
  $("confirm").addEventListener("close", () => {
    const stop = $("confirm").returnValue === "stop";
    $("confirm").returnValue = "";
    keepFocus($("stop"));
    if (stop) call("DELETE", path);
  });

  // ---- what the player sees

  function say(problem) {
    $("problem").textContent = problem;
    $("problem").hidden = problem === "";
  }

  // What was done, in passing.
  function tell(news) {
    $("told").textContent = news;
  }

  function text(id, value) {
    // A live region is read aloud when it is written, so only what is new is written.
    if ($(id).textContent !== value) $(id).textContent = value;
  }

  // Gives the focus to what had it, or where that is gone to what comes next: else a player at the
  // keyboard would begin at the top of the page.
  function keepFocus(had) {
    const next = [had, $("stop"), $("start"), $("status")];
    next.find((each) => each.isConnected && !each.closest("[hidden]")).focus();
  }

  // The server's messages are parts of sentences.
  function sentence(message) {
    return message ? `${message[0].toUpperCase()}${message.slice(1)}.` : "";
  }

  function show(state, status, explain, parts = {}) {
    const had = app.contains(document.activeElement) ? document.activeElement : null;
    if (state !== app.dataset.state) {
      // They were about what is over.
      say("");
      tell("");
    }
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
    if (!parts.stop && $("confirm").open) $("confirm").close();
    else if (had) keepFocus(had);
  }

  function draw() {
    const { challenge, stack, queue, ended, solved, locked } = seen;
    if (challenge) {
      text("name", challenge.name);
      document.title = challenge.name;
      protocol = challenge.protocol;
    }
    if (stack) {
      const note = solved ? "You have solved this challenge." : "";
      const parts = { stop: true, clock: true, note };
      if (stack.status === "running") {
        addresses(stack);
        show("running", "Running", notice(), { ...parts, reach: true, extend: extendable() });
      } else if (queue) {
        const explain = `Place ${queue.place} of ${queue.length} in the queue.`;
        show("queued", "Waiting for its turn", explain, { ...parts, busy: true });
      } else {
        show("creating", "Starting…", sentence(stack.message), { ...parts, busy: true });
      }
      return tick();
    }
    if (!challenge) return show("closed", "Closed", CLOSED);
    if (solved) return show("solved", "Solved", "You have solved this challenge. Well done!");
    if (locked) return show("locked", "Locked", "This challenge is locked for you.");
    if (!challenge.stack_enabled) return show("idle", "Nothing to start", "This challenge needs no stack.");
    const life = `A stack of your own lives for ${span(challenge.ttl_seconds)}.`;
    if (ended) {
      const why = ended.message ? `: ${ended.message}` : "";
      return show("failed", "It has ended", `Your last stack ended by itself${why}.`, { start: true, note: life });
    }
    show("idle", "Not started", "Start it when you are ready.", { start: true, note: life });
  }

  function addresses(stack) {
    const host = stack.node_public_ip || location.hostname.replace(/^\[|\]$/g, "");
    const inUrl = host.includes(":") ? `[${host}]` : host;
    const own = { container_port: stack.target_port, node_port: stack.node_port, protocol: "TCP" };
    const ports = (stack.ports || [own]).filter((port) => port.node_port);
    const rows = [];
    ports.forEach((port, index) => {
      const number = ports.length > 1 ? ` ${port.container_port}` : "";
      if (port.protocol === "UDP") {
        rows.push([`udp${number}`, `nc -u ${host} ${port.node_port}`, "command"]);
      } else if (index === 0 && protocol === null) {
        // Of a challenge that is closed nobody says what it speaks.
        rows.push([`port${number}`, `${inUrl}:${port.node_port}`, "address"]);
      } else if (index === 0 && protocol === "http") {
        const url = `http://${inUrl}:${port.node_port}/`;
        rows.push([`browser${number}`, url, "link"], [`curl${number}`, `curl ${url}`, "command"]);
      } else {
        rows.push([`nc${number}`, `nc ${host} ${port.node_port}`, "command"]);
      }
    });
    const key = JSON.stringify(rows);
    if (key === shownAddresses) return;
    shownAddresses = key;
    $("addresses").replaceChildren(...rows.map(([kind, value, what]) => {
      const row = $("address").content.cloneNode(true);
      row.querySelector(".kind").textContent = kind;
      const [link, code] = [row.querySelector("a"), row.querySelector("code")];
      const [place, other] = what === "link" ? [link, code] : [code, link];
      other.remove();
      place.textContent = value;
      if (place === link) Object.assign(link, { href: value, target: "_blank", rel: "noopener noreferrer" });
      // Its name begins with the word that is seen on it, also while that is "Copied".
      row.querySelector(".unseen").textContent = ` ${kind} ${what}`;
      const word = row.querySelector(".word");
      row.querySelector("button").addEventListener("click", () => copy(value, place, `${kind} ${what}`, word));
      return row;
    }));
  }

  async function copy(value, place, what, word) {
    tell("");
    let copied = true;
    try {
      await navigator.clipboard.writeText(value);
    } catch {
      // Without a secure context, or in a frame that may not: by selection.
      getSelection().selectAllChildren(place);
      copied = document.execCommand("copy");
    }
    if (!copied) return tell(`The ${what} cannot be copied from here. It is selected, so that you can.`);
    tell(`Copied the ${what}.`);
    word.textContent = "Copied";
    setTimeout(() => { word.textContent = "Copy"; }, 1500);
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
    const clock = { hour: "2-digit", minute: "2-digit" };
    const [then, now] = [new Date(at), new Date()];
    if (then.toDateString() === now.toDateString()) return then.toLocaleTimeString([], clock);
    return then.toLocaleString([], { weekday: "short", day: "numeric", month: "short", ...clock });
  }

  function secondsLeft() {
    return Math.max(0, Math.round((Date.parse(seen.stack.ttl_expires_at) - Date.now() - skew) / 1000));
  }

  // What is to be said of a stack that runs. It changes, and so is read aloud, at two moments.
  function notice() {
    const mark = [60, 300].find((mark) => secondsLeft() < mark);
    const warning = mark ? `Less than ${span(mark)} left.` : "";
    return [warning, sentence(seen.stack.message)].filter(Boolean).join(" ");
  }

  function tick() {
    if (!seen || !seen.stack) return;
    const left = secondsLeft();
    const two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(left / 3600);
    const rest = `${two(Math.floor(left / 60) % 60)}:${two(left % 60)}`;
    $("left").textContent = hours > 0 ? `${hours}:${rest}` : rest;
    $("until").textContent = `until ${time(seen.stack.ttl_expires_at)}`;
    $("clock").classList.toggle("short", left < 300);
    if (app.dataset.state === "running") text("explain", notice());
  }

  setInterval(tick, 1000);
  show("signed-out", "Not signed in", "Open this challenge from the platform, which signs you in.");
  fromFragment();
  if (!token) ask();
})();
