// What the page does by itself: keys, which buttons may be pressed, the next prompt after a vote, copying and saving.
(() => {
  const VOTE_KEYS = {ArrowLeft: 'left', ArrowRight: 'right', ArrowUp: 'tie', ArrowDown: 'both_bad'};
  const FIELDS = 'input, textarea, select, [contenteditable=true], [role=tab], [role=listbox], [role=slider], [role=radio]';
  const ADVANCE_MS = 1500;

  const buttonOf = id => {
    const element = document.getElementById(id);
    return element && (element.matches('button') ? element : element.querySelector('button'));
  };
  const press = id => {
    const button = buttonOf(id);
    if (!button || button.disabled) return false;
    button.click();
    return true;
  };

  // Keys -------------------------------------------------------------------------------------------------------------

  document.addEventListener('keydown', event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const field = event.target.closest ? event.target.closest(FIELDS) : null;
    if (event.key === 'n' && !field) { press('mf-next'); return; }
    // In an empty prompt the arrow keys move no cursor, so they can vote.
    const isEmptyPrompt = field && field.matches('#mf-prompt textarea') && !field.value;
    const choice = VOTE_KEYS[event.key];
    if (!choice || event.shiftKey || (field && !isEmptyPrompt)) return;
    const button = buttonOf('mf-vote-' + choice);
    if (button && button.offsetParent && press(button.id)) event.preventDefault();  // not from another tab
  });

  // Controls ---------------------------------------------------------------------------------------------------------

  const setAttributes = (element, attributes) => {
    if (!element) return;
    for (const [name, value] of Object.entries(attributes))
      if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const setEnabled = (id, isEnabled) => {
    const button = buttonOf(id);
    if (button) { button.disabled = !isEnabled; button.setAttribute('aria-disabled', String(!isEnabled)); }
    return button;
  };
  // The prompt is below the answers, and on a phone the keyboard covers them, so the page goes back to them.
  const showAnswers = () => {
    if (matchMedia('(pointer: coarse)').matches) document.activeElement.blur();
    document.getElementById('mf-status').scrollIntoView({block: 'nearest'});
  };
  let lastVote = null;
  let wasSpeaking = false;
  // The status carries what may be pressed. Gradio would rebuild each button in every open page for it.
  const applyControls = () => {
    const carrier = document.querySelector('#mf-status [data-mf]');
    if (!carrier) return;
    const controls = JSON.parse(carrier.dataset.mf);
    document.body.dataset.mfSides = controls.sides;
    // A screen reader reads the status when it changes. Two answers at once, word by word, would be noise.
    setAttributes(document.getElementById('mf-status'), {'aria-live': 'polite', 'aria-atomic': 'true'});
    for (const [side, label] of [...'ABCD'].entries())
      setAttributes(document.querySelector(`#mf-chat-${side} [role=log]`),
        {'aria-label': `Answer ${label}`, 'aria-live': 'off', tabindex: '0'});
    const auto = document.querySelector('#mf-auto input');
    if (controls.voted !== null && lastVote === null && auto && auto.checked)
      setTimeout(() => press('mf-next'), ADVANCE_MS);
    lastVote = controls.voted;
    if (controls.is_speaking && !wasSpeaking) showAnswers();
    wasSpeaking = controls.is_speaking;
    for (const choice of Object.values(VOTE_KEYS)) {
      const button = setEnabled('mf-vote-' + choice, controls.can_vote);
      if (!button) continue;
      button.classList.toggle('mf-voted', controls.voted === choice);
      button.setAttribute('aria-pressed', String(controls.voted === choice));
    }
    setEnabled('mf-reveal', controls.can_show_names);
    setEnabled('mf-stop', controls.is_speaking);
    setEnabled('mf-explain', controls.voted !== null);
    for (const id of ['mf-send', 'mf-new', 'mf-next']) setEnabled(id, !controls.is_speaking);
    for (const id of ['mf-retry', 'mf-edit', 'mf-undo', 'mf-differ', 'mf-export', 'mf-share'])
      setEnabled(id, controls.has_turn && !controls.is_speaking);
  };

  // Focus and open details -------------------------------------------------------------------------------------------

  let isPromptFocused = false;
  // The browser's own autofocus scrolls the page down to the prompt. A phone opens no keyboard before it is wanted.
  const focusPromptOnce = () => {
    const prompt = document.querySelector('#mf-prompt textarea');
    if (isPromptFocused || !prompt || !prompt.offsetParent) return;
    isPromptFocused = true;
    if (document.activeElement === document.body && !matchMedia('(pointer: coarse)').matches)
      prompt.focus({preventScroll: true});
  };
  const openDetails = new Set();
  // A click is noted before it opens or closes: the toggle event comes later, when new standings may have replaced the element.
  document.addEventListener('click', event => {
    const details = event.target.closest && event.target.closest('summary')?.parentElement;
    if (details?.matches('details[id]')) openDetails[details.open ? 'delete' : 'add'](details.id);
  }, true);
  // New standings replace the whole table; what the reader has opened stays open.
  const reopenDetails = () => {
    for (const id of openDetails) {
      const details = document.getElementById(id);
      if (details && !details.open) details.open = true;
    }
  };

  new MutationObserver(() => { applyControls(); focusPromptOnce(); reopenDetails(); }).observe(
    document.documentElement, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-mf']});

  // Copy, save, theme ------------------------------------------------------------------------------------------------

  // The clipboard API exists on https and localhost alone; elsewhere the text is selected and copied.
  const copyText = async text => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const field = document.body.appendChild(document.createElement('textarea'));
    field.value = text; field.select();
    document.execCommand('copy');
    field.remove();
  };
  document.addEventListener('click', async event => {
    const button = event.target.closest && event.target.closest('button[data-copy]');
    if (!button) return;
    await copyText(button.dataset.copy);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
  window.mfPickVersion = (element, trigger) => element.addEventListener('click', event => {
    const button = event.target.closest('button[data-version]');
    if (button) trigger('click', {version: button.dataset.version});
  });
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
