// A person's path through the page, in headless Chromium: node page_path.mjs <address> <chromium> <folder of pictures>
// Prints one JSON object: what was seen at each step, and everything the browser complained of.
import { chromium } from "playwright-core";

const [address, executablePath, pictures] = process.argv.slice(2);
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args: flags });
const seen = { complaints: [], outside: [] };

async function open(options) {
  const context = await browser.newContext(options);
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  page.on("console", (message) => seen.complaints.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("dialog", (dialog) => dialog.accept());
  page.on("request", (request) => { if (!request.url().startsWith(address) && !/^(data|blob):/.test(request.url())) seen.outside.push(request.url()); });
  await page.goto(address);
  return page;
}
const picture = (page, name) => page.screenshot({ path: `${pictures}/${name}.png` });
const last = (page, selector) => page.locator(selector).last();
const ended = (page, count) => page.waitForFunction((n) => document.querySelectorAll(".assistant .note").length >= n && !document.querySelector(".streaming"), count);

try {
  const page = await open({ viewport: { width: 1280, height: 860 }, colorScheme: "light" });
  await page.locator("#ideas button").first().waitFor();
  await picture(page, "welcome");
  seen.focused = await page.evaluate(() => document.activeElement.id);

  // Type and stream.
  await page.keyboard.type("Show me ");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("Markdown");
  seen.typed = await page.inputValue("#input");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => (document.querySelector(".assistant .body")?.textContent || "").length > 20);
  seen.streaming = await page.locator(".streaming").count();
  await picture(page, "streaming");
  await ended(page, 1);
  await picture(page, "answered");
  const body = page.locator(".assistant .body").first();
  seen.markdown = await body.evaluate((node) => ({
    heading: node.querySelector("h3")?.textContent, strong: node.querySelector("strong")?.textContent,
    items: node.querySelectorAll("ol > li").length, code: node.querySelector("pre code")?.textContent,
    cells: node.querySelectorAll("td").length, links: [...node.querySelectorAll("a")].map((a) => a.getAttribute("href")),
    scripts: node.querySelectorAll("script, img, iframe").length, text: node.textContent,
  }));
  seen.attacked = await page.evaluate(() => window.attacked === true);

  // Copy a block of code.
  await page.locator(".code .icon").first().click();
  await page.waitForFunction(() => document.querySelector("#status").textContent === "Copied.");
  seen.copied = await page.evaluate(() => navigator.clipboard.readText());

  // Stop, answer again, look at the earlier answer.
  await page.fill("#input", "go on forever");
  await page.click("#send");
  await page.waitForFunction(() => [...document.querySelectorAll(".assistant .body")].pop().textContent.length > 10);
  await page.click("#send");
  await ended(page, 2);
  seen.stopped = await last(page, ".assistant .note").textContent();
  await last(page, '[aria-label="Answer again"]').click();
  await page.waitForFunction(() => [...document.querySelectorAll(".assistant .body")].pop().textContent.length > 10);
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => [...document.querySelectorAll(".note")].some((node) => node.textContent === "2 / 2"));
  await last(page, '[aria-label="Earlier answer"]').click();
  seen.versions = await page.locator(".note").allTextContents();
  await picture(page, "stopped");

  // Edit.
  await last(page, ".message.user").hover();
  await last(page, '[aria-label="Edit"]').click();
  await page.fill(".editor textarea", "say something short");
  await picture(page, "editing");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => [...document.querySelectorAll(".assistant .body")].pop().textContent === "Fine.");
  await ended(page, 2);
  seen.turns = await page.locator(".user .body").allTextContents();

  // System prompt and sampling.
  await page.click("#settings-open");
  await page.fill("#set-system", "Answer in rhyme.");
  await page.fill("#set-max_tokens", "50");
  await page.locator("#set-temperature").fill("0.3");
  await picture(page, "settings");
  await page.keyboard.press("Escape");
  const request = page.waitForRequest((each) => each.method() === "POST");
  await page.fill("#input", "say something short again");
  await page.keyboard.press("Enter");
  seen.request = (await request).postDataJSON();
  await ended(page, 3);

  // Dark, light, and as the system has it.
  await page.click("#theme");
  await page.click("#theme");
  seen.dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await picture(page, "dark");

  // Thoughts are folded away.
  seen.thought = await page.evaluate(() => {
    const box = document.createElement("div");
    box.append(renderAnswer("<think>\nhm **so**\n</think>\n\nYes."));
    const open = document.createElement("div");
    open.append(renderAnswer("<think>still"));
    return [box.querySelector("details").open, box.querySelector("details + p").textContent, open.querySelector("details").open, box.textContent];
  });

  // Kept, exported, deleted.
  await page.reload();
  await page.locator("#conversations .open").first().click();
  seen.kept = await page.locator(".message").count();
  for (const kind of ["markdown", "json"]) {
    const [file] = await Promise.all([page.waitForEvent("download"), page.click(`#export-${kind}`)]);
    await file.saveAs(`${pictures}/exported.${kind}`);
  }
  await page.locator("#conversations li").first().hover();
  await page.locator("#conversations .remove").first().click();
  seen.left = await page.locator("#conversations li").count();

  // A telephone.
  const phone = await open({ viewport: { width: 390, height: 780 }, isMobile: true, hasTouch: true, colorScheme: "dark" });
  await phone.locator("#ideas button").first().waitFor();
  await picture(phone, "phone");
  await phone.fill("#input", "Show me Markdown");
  await phone.click("#send");
  await ended(phone, 1);
  await picture(phone, "phone-answered");
  seen.width = await phone.evaluate(() => document.documentElement.scrollWidth);
  await phone.click("#menu");
  await phone.locator("#new").waitFor({ state: "visible" });
  await picture(phone, "phone-menu");
  await phone.click("#new");
  seen.phoneEmpty = await phone.locator(".message").count();
} catch (error) {
  seen.failure = String(error);
}
await browser.close();
console.log(JSON.stringify(seen));
