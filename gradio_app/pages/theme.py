"""Theme, style sheet and the little script of the page. Colours are chosen for contrast of at least 4.5 to 1 in light and dark."""

from __future__ import annotations

CSS = """
:root { --mf-a: #0b61a4; --mf-b: #a04100; --mf-good: #1a7f37; --mf-bad: #b42318; --mf-warn: #8a5a00;
  --mf-good-paper: #e6f4ea; --mf-bad-paper: #fdecea; --mf-warn-paper: #fff5d6; }
.dark { --mf-a: #6cb6ff; --mf-b: #ffab70; --mf-good: #57d06f; --mf-bad: #ff8b80; --mf-warn: #e3b341;
  --mf-good-paper: #12321d; --mf-bad-paper: #3d1513; --mf-warn-paper: #332701; }
.gradio-container { width: 100% !important; max-width: 1500px !important; margin: 0 auto !important; }
.mf-head { display: flex; align-items: baseline; gap: .8rem; flex-wrap: wrap; padding: .2rem 0 .1rem; }
.mf-head h1 { font-size: 1.25rem; margin: 0; } .mf-head a { font-size: .9rem; }
.mf-soft { color: var(--body-text-color-subdued); font-size: .9rem; }
.mf-notice { min-height: 2.6rem; padding: .55rem .9rem; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); }
.mf-good { border-left: 4px solid var(--mf-good); background: var(--mf-good-paper); }
.mf-warn { border-left: 4px solid var(--mf-warn); background: var(--mf-warn-paper); }
.mf-bad { border-left: 4px solid var(--mf-bad); background: var(--mf-bad-paper); }
#mf-status .mf-notice { height: 4.2rem; overflow-y: auto; align-content: safe center; }
:is(#mf-shared, #mf-reference, #mf-difference, #mf-link):not(:has([id^=html-] > *)) { display: none; }
.mf-side { height: 7.8rem; overflow-y: auto; padding: .3rem .2rem; display: flex; gap: .2rem .8rem; flex-wrap: wrap;
  align-items: baseline; align-content: flex-start; }
.mf-side dl { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0; width: 100%; font-size: .85rem; }
.mf-side dl div { display: flex; gap: .35rem; } .mf-side dt { color: var(--body-text-color-subdued); }
.mf-side dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.mf-chat-0 { border-top: 3px solid var(--mf-a) !important; } .mf-chat-1 { border-top: 3px solid var(--mf-b) !important; }
.mf-chat-2, .mf-chat-3 { border-top: 3px solid var(--body-text-color-subdued) !important; }
.mf-chats .bubble-wrap { padding-top: 1.8rem !important; }
.mf-chats button[aria-label="Clear"] { display: none; }
body[data-mf-sides="2"] .mf-column-2, body[data-mf-sides="2"] .mf-column-3, body[data-mf-sides="3"] .mf-column-3,
  body:not([data-mf-sides]) .mf-column-2, body:not([data-mf-sides]) .mf-column-3 { display: none; }
button[aria-disabled="true"] { opacity: .55; cursor: default; }
.mf-voted { background: var(--mf-a) !important; color: var(--body-background-fill) !important; opacity: 1 !important; }
.mf-votes button { min-height: 2.9rem; font-weight: 600; }
.mf-scroll { overflow-x: auto; } .mf-table { border-collapse: collapse; width: 100%; font-size: .92rem; }
.mf-table :is(th, td) { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0 !important;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; color: var(--body-text-color); }
[role=tab][aria-selected=true] { color: var(--mf-a) !important; }
.mf-diff { display: grid; grid-template-columns: 1fr 1fr; gap: .2rem 1rem; } .mf-diff > p { grid-column: 1 / -1; margin: 0; }
.mf-shared { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: .4rem .9rem; }
.mf-diff pre, .mf-reference pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6rem .8rem; margin: .2rem 0; }
.mf-diff mark { background: var(--mf-warn-paper); color: inherit; border-bottom: 2px solid var(--mf-warn); }
button:focus-visible, textarea:focus-visible, input:focus-visible, a:focus-visible, [role=tab]:focus-visible {
  outline: 3px solid var(--mf-a) !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container, .gradio-container main { padding: .4rem !important; }
  .mf-head h1 { font-size: 1.05rem; }
  [role=tab] { padding-inline: .55rem !important; }
  .mf-ask { flex-wrap: wrap !important; } .mf-ask > * { min-width: 100% !important; } .mf-send { flex-direction: row !important; }
  .mf-tools { flex-wrap: wrap !important; gap: .5rem !important; }
  .mf-tools > * { min-width: 28% !important; flex: 1 1 28%; min-height: 2.4rem; }
  .mf-chats { flex-direction: column !important; gap: .3rem !important; }
  .mf-chats > * { min-width: 100% !important; } .mf-chats [id^=mf-chat-] { height: 34vh !important; min-height: 200px !important; }
  .mf-votes { position: sticky; bottom: 0; z-index: 5; background: var(--body-background-fill); padding: .3rem 0; flex-wrap: wrap !important; }
  .mf-votes > * { min-width: 45% !important; }
  #mf-status .mf-notice { height: 6.2rem; }
  .mf-side { height: 8.6rem; }
  .mf-diff { grid-template-columns: 1fr; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""

SCRIPT = """
<script>
(() => {
  const keys = {ArrowLeft: 'mf-vote-left', ArrowRight: 'mf-vote-right', ArrowUp: 'mf-vote-tie', ArrowDown: 'mf-vote-both_bad'};
  document.addEventListener('keydown', event => {
    const place = event.target.closest ? event.target.closest('input, textarea, select, [contenteditable=true], [role=tab], [role=listbox], [role=slider], [role=radio]') : null;
    const isEmptyPrompt = place && place.matches('#mf-prompt textarea') && !place.value;  // there arrows move nothing
    if (event.key === 'n' && !place && !event.altKey && !event.ctrlKey && !event.metaKey) { press('mf-next'); return; }
    const id = keys[event.key];
    if (!id || (place && !isEmptyPrompt) || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const found = document.getElementById(id);
    const button = found && (found.matches('button') ? found : found.querySelector('button'));
    if (button && !button.disabled && button.offsetParent) { event.preventDefault(); button.click(); }
  });
  // a set is opened below the answers: they are what one wants to see next
  document.addEventListener('click', event => {
    if (event.target.closest && event.target.closest('#mf-next')) document.getElementById('mf-status').scrollIntoView({block: 'nearest'});
  });
  // one place says what may be pressed: Gradio would build each button anew for it, in every page
  let lastVoted = null;
  const press = id => {
    const place = document.getElementById(id);
    const button = place && (place.matches('button') ? place : place.querySelector('button'));
    if (button && !button.disabled) button.click();
    return Boolean(button && !button.disabled);
  };
  const mark = (found, told) => {
    for (const [name, value] of Object.entries(found ? told : {})) if (found.getAttribute(name) !== value) found.setAttribute(name, value);
  };
  const apply = () => {
    const found = document.querySelector('#mf-status [data-mf]');
    if (!found) return;
    const told = JSON.parse(found.dataset.mf);
    document.body.dataset.mfSides = told.sides;
    // the line above the answers is read out when it changes; two answers at once, word by word, would be noise
    mark(document.getElementById('mf-status'), {'aria-live': 'polite', 'aria-atomic': 'true'});
    for (const [place, name] of [...'ABCD'].entries())
      mark(document.querySelector(`#mf-chat-${place} [role=log]`), {'aria-label': `Answer ${name}`, 'aria-live': 'off', tabindex: '0'});
    const auto = document.querySelector('#mf-auto input');
    if (told.voted !== null && lastVoted === null && auto && auto.checked) setTimeout(() => press('mf-next'), 1500);
    lastVoted = told.voted;
    const set = (id, can) => {
      const place = document.getElementById(id);
      const button = place && (place.matches('button') ? place : place.querySelector('button'));
      if (button) { button.disabled = !can; button.setAttribute('aria-disabled', String(!can)); }
      return button;
    };
    for (const choice of ['left', 'tie', 'both_bad', 'right']) {
      const button = set('mf-vote-' + choice, told.can_vote);
      if (button) { button.classList.toggle('mf-voted', told.voted === choice); button.setAttribute('aria-pressed', String(told.voted === choice)); }
    }
    set('mf-reveal', told.can_show_names); set('mf-stop', told.is_speaking); set('mf-explain', told.voted !== null);
    for (const id of ['mf-send', 'mf-new', 'mf-next']) set(id, !told.is_speaking);
    for (const id of ['mf-retry', 'mf-edit', 'mf-undo', 'mf-differ', 'mf-export', 'mf-share']) set(id, told.has_turn && !told.is_speaking);
  };
  new MutationObserver(apply).observe(document.documentElement, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-mf']});
  window.mfSave = (name, text) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
    link.download = name; link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  window.mfTheme = () => {
    const url = new URL(window.location);
    url.searchParams.set('__theme', document.body.classList.contains('dark') ? 'light' : 'dark');
    window.location.href = url.href;
  };
})();
</script>
"""
