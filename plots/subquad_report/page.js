"use strict";
(() => {
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

// ---- theme: auto, light, dark; remembered where the browser allows it ----
const themes = ["auto", "light", "dark"];
const remembered = {
  get: () => { try { return localStorage.getItem("subquad-theme"); } catch { return null; } },
  set: value => { try { localStorage.setItem("subquad-theme", value); } catch { /* not here */ } },
};
let theme = themes.includes(remembered.get()) ? remembered.get() : "auto";
const showTheme = () => {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("#theme").textContent = `Theme: ${theme}`;
  $("#theme").setAttribute("aria-label",
    `Theme: ${theme === "auto" ? "as the system has it" : theme}; press to change`);
};
$("#theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  remembered.set(theme);
  showTheme();
});
showTheme();

// ---- data: columns of text; repeated texts are stored once ----
const data = JSON.parse($("#data").textContent);
const columns = data.columns.map(column => ({
  ...column,
  at: column.dict ? row => column.dict[column.index[row]] : row => column.values[row],
}));
const named = Object.fromEntries(columns.map(column => [column.name, column]));
const value = (name, row) => named[name] ? named[name].at(row) : "";

const significant = (number, digits = 3) => {
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size < 1e-3 || size >= 1e7) return number.toExponential(digits - 1);
  return String(Number(number.toPrecision(Math.max(digits, Math.floor(Math.log10(size)) + 1))));
};
const withUnit = (number, units) => {
  let [factor, name] = units[0];
  for (const unit of units) if (Math.abs(number) >= unit[0] * 0.9999) [factor, name] = unit;
  return `${significant(number / factor)} ${name}`;
};
const timeUnits = [[1e-9, "ns"], [1e-6, "\u00b5s"], [1e-3, "ms"], [1, "s"]];
const byteUnits = [[1, "B"], [1024, "KiB"], [1048576, "MiB"], [1073741824, "GiB"]];
const plainNumbers = new Set(["n", "n_kv", "d_k", "d_v", "round", "seed", "attempt"]);
const shown = (column, text) => {
  if (text === "" || column.kind === "text" || plainNumbers.has(column.name)) return text;
  const number = Number(text);
  if (!Number.isFinite(number)) return text;
  if (column.kind === "time") return withUnit(number, timeUnits);
  if (column.kind === "bytes") return withUnit(number, byteUnits);
  return significant(number, 4);
};

// ---- state ----
const filters = {label: null, task: null, pass: null};  // null: all, else a Set
const state = {status: null, flag: null, search: "", superseded: false, sort: null, down: false,
               page: 0, size: 50, open: new Set(), shown: new Set(columns.filter(c => c.shown).map(c => c.name))};
let found = [];

const passes = (name, text) => filters[name] === null || filters[name].has(text);
const collator = new Intl.Collator("en", {numeric: true});
const compare = (column, a, b) => {
  const x = column.at(a), y = column.at(b);
  if (x === "" || y === "") return (x === "") - (y === "");  // what is missing comes last
  const order = column.kind === "text" ? collator.compare(x, y) : Number(x) - Number(y);
  return state.down ? -order : order;
};

// ---- rows ----
const select = () => {
  const wanted = state.search.toLowerCase();
  const matches = column => column.dict
    ? (hits => row => hits[column.index[row]])(column.dict.map(text => text.toLowerCase().includes(wanted)))
    : row => column.values[row].toLowerCase().includes(wanted);
  const searched = wanted ? columns.map(matches) : null;
  found = [];
  for (let row = 0; row < data.rows; row++) {
    if (data.superseded[row] && !state.superseded) continue;
    if (state.status !== null && value("status", row) !== state.status) continue;
    if (state.flag !== null && !value("flags", row).split(";").includes(state.flag)) continue;
    if (!Object.keys(filters).every(name => passes(name, value(name, row)))) continue;
    if (searched && !searched.some(match => match(row))) continue;
    found.push(row);
  }
  const column = state.sort && named[state.sort];
  if (column) found.sort((a, b) => compare(column, a, b) || a - b);
};

const detailOf = row => {
  const list = element("dl");
  for (const column of columns) {
    const text = column.at(row);
    if (text === "") continue;
    const code = column.name === "command" || column.name === "cell_id";
    const plain = shown(column, text);
    const item = element("div", {className: text.length > 60 ? "long" : ""},
      element("dt", {textContent: column.name, title: column.about}),
      element("dd", {}, code ? element("code", {textContent: text})
                             : plain === text ? text : `${plain} (${text})`));
    list.append(item);
  }
  return list;
};

const headOf = column => {
  const button = element("button", {type: "button", className: "sort", textContent: column.name,
                                    title: column.about});
  button.addEventListener("click", () => {
    state.down = state.sort === column.name ? !state.down : false;
    state.sort = column.name;
    state.page = 0;
    showRows();
    $$("#rows thead button").find(each => each.textContent === column.name)?.focus();
  });
  const head = element("th", {scope: "col", className: column.kind === "text" ? "" : "num"}, button);
  if (state.sort === column.name) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
  return head;
};

const lineOf = (row, visible) => {
  const open = state.open.has(row);
  const button = element("button", {type: "button", className: "open", textContent: open ? "\u2212" : "+"});
  button.setAttribute("aria-expanded", String(open));
  button.setAttribute("aria-label", `All of the row: ${value("label", row)}, ${value("task", row)}, n = ${value("n", row)}, round ${value("round", row)}`);
  button.addEventListener("click", () => {
    if (open) state.open.delete(row); else state.open.add(row);
    const place = $$("#rows .open").indexOf(button);
    fillRows();
    $$("#rows .open")[place]?.focus();
  });
  const line = element("tr", {className: data.superseded[row] ? "superseded" : ""}, element("td", {}, button));
  for (const column of visible) {
    const text = column.at(row);
    const cell = element("td", {className: column.kind === "text" ? "" : "num", title: text});
    if (column.name === "status") cell.append(element("span", {className: `status ${text}`, textContent: text}));
    else cell.textContent = shown(column, text);
    line.append(cell);
  }
  if (!open) return [line];
  const cell = element("td", {colSpan: visible.length + 1}, detailOf(row));
  return [line, element("tr", {className: "detail"}, cell)];
};

const fillRows = () => {
  const visible = columns.filter(column => state.shown.has(column.name));
  const pages = Math.max(1, Math.ceil(found.length / state.size));
  state.page = Math.min(state.page, pages - 1);
  const begin = state.page * state.size, here = found.slice(begin, begin + state.size);
  $("#rows thead").replaceChildren(element("tr", {},
    element("th", {scope: "col"}, element("span", {className: "hidden", textContent: "details"})),
    ...visible.map(headOf)));
  $("#rows tbody").replaceChildren(...here.flatMap(row => lineOf(row, visible)));
  const total = data.superseded.filter(each => !each || state.superseded).length;
  const also = [state.status !== null ? `status ${state.status}` : "",
                state.flag !== null ? `flag ${state.flag}` : ""].filter(Boolean).join(", ");
  const clear = element("button", {type: "button", className: "show", textContent: `\u00d7 ${also}`});
  clear.setAttribute("aria-label", `Remove the filter: ${also}`);
  clear.addEventListener("click", () => { state.status = state.flag = null; update(); });
  $("#found").replaceChildren(here.length
    ? `Rows ${(begin + 1).toLocaleString("en")} to ${(begin + here.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}${found.length === total ? "" : ` (of ${total.toLocaleString("en")} in all)`} `
    : "No row matches. ", ...(also ? [clear] : []));
  $("#page").textContent = `Page ${state.page + 1} of ${pages}`;
  $("#first").disabled = $("#previous").disabled = state.page === 0;
  $("#last").disabled = $("#next").disabled = state.page === pages - 1;
};
const showRows = () => { select(); fillRows(); };

for (const [name, page] of [["first", () => 0], ["previous", () => state.page - 1],
                            ["next", () => state.page + 1], ["last", () => Infinity]])
  $(`#${name}`).addEventListener("click", () => { state.page = Math.max(0, page()); fillRows(); });
let waiting = 0;
$("#search").addEventListener("input", event => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.search = event.target.value; state.page = 0; showRows(); }, 120);
});
$("#size").addEventListener("change", event => { state.size = Number(event.target.value); fillRows(); });
$("#superseded").addEventListener("change", event => { state.superseded = event.target.checked; update(); });
if (!data.superseded.some(Boolean)) $("#superseded").parentElement.hidden = true;

const field = text => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
$("#download").addEventListener("click", () => {
  const lines = [columns.map(column => column.name),
                 ...found.map(row => columns.map(column => field(column.at(row))))];
  const file = new Blob([lines.map(line => line.join(",")).join("\n") + "\n"], {type: "text/csv"});
  const link = element("a", {href: URL.createObjectURL(file), download: "rows.csv"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
$("#columns .panel").append(element("fieldset", {},
  element("legend", {className: "hidden", textContent: "Columns shown"}),
  ...columns.map(column => {
    const box = element("input", {type: "checkbox", checked: column.shown});
    box.addEventListener("change", () => {
      if (box.checked) state.shown.add(column.name); else state.shown.delete(column.name);
      fillRows();
    });
    return element("label", {title: column.about}, box, ` ${column.name}`);
  })));

// ---- filters: act on figures, tables, groups and rows alike ----
const update = () => {
  state.page = 0;
  showRows();
  for (const each of $$(".view, .pivot, tr[data-label]"))
    each.hidden = Object.keys(filters).some(
      name => each.dataset[name] !== undefined && !passes(name, each.dataset[name]));
  for (const curve of $$("svg [data-label]"))
    curve.classList.toggle("faint", !passes("label", curve.dataset.label));
  const any = Object.values(filters).some(filter => filter !== null);
  $("#reset").disabled = !any && state.status === null && state.flag === null && !state.search;
  $("#shown").textContent = any ? `${found.length.toLocaleString("en")} rows` : "";
};
for (const menu of $$(".filter")) {
  const name = menu.dataset.column, boxes = $$("fieldset input", menu);
  const read = () => {
    const chosen = boxes.filter(box => box.checked);
    filters[name] = chosen.length === boxes.length ? null : new Set(chosen.map(box => box.value));
    $(".chosen", menu).textContent = filters[name] === null ? "all"
      : chosen.length === 1 && chosen[0].value.length < 18 ? chosen[0].value : `${chosen.length} of ${boxes.length}`;
    update();
  };
  const all = (checked) => {
    for (const box of boxes) if (!box.parentElement.hidden) box.checked = checked;
    read();
  };
  for (const box of boxes) box.addEventListener("change", read);
  $(".all", menu).addEventListener("click", () => all(true));
  $(".none", menu).addEventListener("click", () => all(false));
  $(".narrow", menu)?.addEventListener("input", event => {
    for (const box of boxes)
      box.parentElement.hidden = !box.value.toLowerCase().includes(event.target.value.toLowerCase());
  });
}
$("#reset").addEventListener("click", () => {
  for (const box of $$(".filter fieldset input")) box.checked = true;
  for (const menu of $$(".filter")) {
    filters[menu.dataset.column] = null;
    $(".chosen", menu).textContent = "all";
  }
  Object.assign(state, {status: null, flag: null, search: ""});
  $("#search").value = "";
  update();
});
const jump = changes => {
  Object.assign(state, {status: null, flag: null}, changes);
  update();
  $("#rows-section").scrollIntoView();
};
for (const button of $$("[data-status], [data-flag]"))
  button.addEventListener("click", () => {
    const line = button.closest("tr[data-label]");
    if (line)  // a group: its method, task and pass too
      for (const menu of $$(".filter")) {
        const wanted = line.dataset[menu.dataset.column];
        for (const box of $$("fieldset input", menu)) box.checked = wanted === undefined || box.value === wanted;
        $("fieldset input", menu)?.dispatchEvent(new Event("change"));
      }
    jump({status: button.dataset.status ?? null, flag: button.dataset.flag ?? null});
  });

// Menus close on Escape and on a click elsewhere.
document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  for (const menu of $$(".menu[open]")) {
    menu.open = false;
    $("summary", menu).focus();
  }
});
document.addEventListener("click", event => {
  for (const menu of $$(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

// ---- tables that are in the page already ----
const key = cell => cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent.trim();
for (const table of $$("table.sortable"))
  $$("thead th", table).forEach((head, place) => $("button", head).addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of $$("thead th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = $("tbody", table), lines = [...body.rows];
    const order = (a, b) => {
      const x = key(a.cells[place]), y = key(b.cells[place]);
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;  // no number: last
      const sign = typeof x === "number" ? x - y : collator.compare(x, y);
      return down ? -sign : sign;
    };
    body.replaceChildren(...lines.sort(order));
  }));

// ---- which quantity the tables show ----
const quantities = $$(".quantity");
const showQuantity = wanted => {
  for (const each of quantities) each.hidden = each.dataset.quantity !== wanted;
};
for (const radio of $$("input[name=quantity]")) {
  radio.addEventListener("change", () => showQuantity(radio.value));
  if (radio.checked) showQuantity(radio.value);
}

// ---- enlarged figures ----
for (const button of $$(".enlarge"))
  button.addEventListener("click", () => {
    const copy = $("svg", button.closest("figure")).cloneNode(true);
    $("#large > div").replaceChildren(copy);
    $("#large").showModal();
  });
$("#large").addEventListener("click", event => { if (event.target === $("#large")) $("#large").close(); });

update();
})();
