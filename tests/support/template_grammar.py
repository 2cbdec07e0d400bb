"""Random chat templates, made of the constructs of real ones, and random dialogues for them."""

import json
import re
from random import Random

from hypothesis import strategies as st

# Productions by symbol; `<symbol>` in a production is replaced by any production of that symbol.
# Every symbol has a production without symbols, which ends an expansion that is too deep.
GRAMMAR: dict[str, list[str]] = {
    "template": [
        "<before>{% for m in <messages> %}<body><turn>{% endfor %}<after>",
        "<before>{% for m in messages %}<turn>{% endfor %}<after>",
        "<before>{% for m in messages %}<body><turn>{% endfor %}<after>",
        "<before>{% for i in range(messages|length) %}{% set m = messages[i] %}"
        "<turn>{% endfor %}<after>",
        "<before>{% for m in messages if <test> %}<turn>{% endfor %}<after>",
        "{% set ns = namespace(n=0, text='', list=[], flag=false, last=-1) %}"
        "{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}"
        "{% if ns.last < 0 and m.role == 'user' and not m.content is mapping %}"
        "{% set ns.last = i %}{% endif %}{% endfor %}<before>"
        "{% for m in messages %}{% if loop.index0 > ns.last %}<body>{% endif %}<turn>"
        "{% endfor %}<after>",
        "<before>{% macro all(list) %}{% for m in list %}<turn>{% endfor %}{% endmacro %}"
        "{{ all(<messages>) }}<after>",
        "<before>{% set all %}{% for m in messages %}<turn>{% endfor %}{% endset %}"
        "{{ all }}<after>",
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>\n{% endfor %}",
    ],
    "before": [
        "",
        "{{ bos_token }}",
        "{% set ns = namespace(n=0, text='', list=[], flag=false, last=-1) %}<before>",
        "{% set ns = namespace(n=0, text='', list=[], flag=false, last=-1) %}<before>",
        "{% set rest = messages %}{% if messages[0].role == 'system' %}"
        "{% set rest = messages[1:] %}{{ messages[0].content }}{% set s = messages[0].content %}"
        "{% endif %}<before>",
        "{% macro f(x, y='d') %}{% if x is string %}{{ x }}{{ y }}{% elif x is mapping %}"
        "{% for k, v in x.items() %}{{ k }}:{{ f(v, y) }}{% endfor %}{% elif x is iterable %}"
        "{% for v in x %}{{ f(v) }}{{ ',' if not loop.last }}{% endfor %}{% else %}{{ x }}"
        "{% endif %}{% endmacro %}<before>",
        "{% macro g(x) %}({{ x }}{{ caller() }}){% endmacro %}<before>",
        "{% if tools %}{{ tools|tojson }}{% for t in tools %}{{ t.function.name }}"
        "{{ t|tojson(indent=2) }}{{ f(t.function.parameters) if f }}{% endfor %}{% endif %}"
        "<before>",
        "{{ strftime_now('%Y') }}",
        "{% set x = 'outer' %}<before>",
        "{% if messages[0].content == 'a' %}{% set x = 'A' %}{% endif %}<before>",
        "{{ messages|length }}",
        "{{ messages|map(attribute='role')|join(',') }}",
        "{{ messages[-1].content }}",
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
        "{{ (messages|selectattr('tool_calls', 'defined')|list|last).role }}",
        "{% set users = messages|selectattr('role', 'equalto', 'user') %}"
        "{{ 'u' if users }}{{ users|map(attribute='content')|join }}",
        "{% for m in messages|reverse %}{% if m.role == 'user' %}{{ m.content }}{% break %}"
        "{% endif %}{% endfor %}",
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
    ],
    "after": [
        "",
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        "{{ '<|im_start|>assistant\n' if add_generation_prompt else eos_token }}",
        "{{ ns.text }}{{ ns.n }}{{ ns.list|join(',') }}{{ ns.list }}",
        "{{ '<|im_start|>' + 'assistant\n' if add_generation_prompt and ns.n is odd }}",
        "{{ x }}{{ m }}",
        "{% if messages[-1].role == 'user' %}{{ messages[-1].content|trim }}{% endif %}",
    ],
    "messages": ["messages", "rest", "messages[1:]", "messages|reverse", "messages[:3]"],
    "turn": [
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>{{ m.role }}\n{{ <text> }}<|im_end|>\n",
        "<|im_start|>{{ m.role }}\n<body>{{ <text> }}<|im_end|>\n",
        "{{ '<|im_start|>' + m.role + '\n' + m.content|string + '<|im_end|>' + '\n' }}",
        "{{ '<|im_start|>' ~ m['role'] ~ '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ <text> }}<|im_end|>{% endgeneration %}{% else %}{{ <text> }}<|im_end|>{% endif %}\n",
        "{% if m.role == 'user' %}[INST] {{ <text> }} [/INST]{% elif m.role == 'assistant' %}"
        " {{ <text> }}{{ eos_token }}{% elif <test> %}{{ <text> }}{% endif %}",
        "{% if m.role == 'tool' %}{% if loop.first or loop.previtem.role != 'tool' %}"
        "<|im_start|>user{% endif %}\n<tool_response>{{ m.content }}</tool_response>"
        "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}{% else %}"
        "<|im_start|>{{ m.role }}\n{{ <text> }}<calls><|im_end|>\n{% endif %}",
        "{% set content = m.content %}{% if m.role == 'assistant' and '</think>' in content %}"
        "{% set think = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
        "{% if loop.last %}{{ think }}{% endif %}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n",
    ],
    "calls": [
        "{% for c in m.tool_calls %}{% if c.function %}{% set c = c.function %}{% endif %}"
        "<tool_call>{{ c.name }}{{ c.arguments if c.arguments is string else c.arguments|tojson }}"
        "</tool_call>{{ loop.index }}{% endfor %}",
        "{% if m.tool_calls is defined and m.tool_calls %}{% for c in m.tool_calls %}"
        "{{ c['function']['name'] }}({% for k, v in c.function.arguments.items() %}"
        "{{ k }}={{ v|tojson if v is not string else v }}{{ ', ' if not loop.last }}{% endfor %})"
        "{% endfor %}{% endif %}",
        "{% for k, v in (m.meta or {})|dictsort %}{{ k }}={{ v }}{% endfor %}",
        "{% for k in m.meta %}{{ k }}{{ m.meta[k] }}{{ f(m.meta[k]) if f }}{% endfor %}",
        "{{ f(m.tool_calls) if f }}{{ m.tool_calls|tojson }}",
    ],
    "body": [
        "",
        "{{ <text> }}",
        "<body><body>",
        "<calls>",
        "{% if <test> %}<body>{% endif %}",
        "{% if <test> %}<body>{% elif <test> %}<body>{% else %}<body>{% endif %}",
        "{% set x = <text> %}<body>{{ x }}",
        "{% if <test> %}{% set x = <text> %}{% endif %}{{ x }}",
        "{% set ns.n = ns.n + 1 %}",
        "{% set ns.n = ns.n + m.content|length %}{{ ns.n }}",
        "{% set ns.text = ns.text ~ <text> %}",
        "{% set ns.list = ns.list + [<text>] %}{{ ns.list|length }}",
        "{% set ns.flag = <test> %}",
        "{% set ns.last = loop.index0 %}",
        "{% set b %}<body>{{ <text> }}{% endset %}{{ b }}",
        "{% set b %}<body>{% endset %}{% if b|trim %}{{ b|trim }}{% endif %}",
        "{% set ns.text %}{{ ns.text }}<body>{% endset %}",
        "{% generation %}<body>{{ <text> }}{% endgeneration %}",
        "{% if <test> %}{% continue %}{% endif %}",
        "{% if <test> %}{% break %}{% endif %}",
        "{% if <test> %}{{ raise_exception('no: ' ~ <text>) }}{% endif %}",
        "{{ f(<text>) if f }}{{ f(m.k) if f }}{{ f(m, <text>) if f }}",
        "{% if g %}{% call g(<text>) %}<body>{% endcall %}{% endif %}",
        "{% filter upper %}<body>{{ <text> }}{% endfilter %}",
        "{% for c in <text> %}{{ c }}{{ loop.index }}{% if loop.last %}.{% endif %}{% endfor %}",
        "{% for i in range(<number>) %}{{ i }}{% endfor %}",
        "{% for c in m.content %}{{ c.type }}{{ c.text }}{% endfor %}",
        "{% for k, v in m.items() %}{{ k }}{{ v }}{% endfor %}{{ m.keys()|list }}",
        "{{ m }}{{ m|tojson }}",
        "{{ <number> }}",
        "{{ <test> }}",
        "{% set p = loop.previtem %}{% if p is defined and p.role == m.role %}{{ p.content }}"
        "{% endif %}",
        "{{ loop.first }}{{ loop.last }}{{ loop.index }}",
        "{{ loop.revindex }}{{ loop.length }}",
        "{% set a, b = <text>, <text> %}{{ a }}{{ b }}",
        "{{ {'a': <text>, 'b': m.k}|tojson }}",
        "{{ {'user': 'U', 'assistant': <text>}[m.role] }}",
        "{{ m.k if m.k is string else m.k|tojson }}{{ m.n }}{{ m.n|tojson }}",
        "{{ (m.k or {}).k if m.k is mapping }}",
    ],
    "text": [
        "m.content",
        "m.content",
        "m['content']",
        "m.role",
        "'a'",
        "bos_token",
        "x",
        "s",
        "ns.text",
        "(m.k|string)",
        "m.get('k', 'K')",
        "(m.reasoning_content or '')",
        "messages[0].content",
        "loop.previtem.content",
        "(loop.nextitem or m).content",
        "<text>|trim",
        "<text>.strip()",
        "<text>.rstrip('\n')",
        "<text>.split('</think>')[0]",
        "<text>.split('</think>')[-1].lstrip('\n')",
        "<text>.split('a', 1)[1]",
        "<text>.replace('a', <text>)",
        "<text>|replace('\n', ' ')",
        "<text>|upper",
        "<text>|tojson",
        "<text>|string",
        "<text>|e",
        "<text>|default(<text>, true)",
        "<text>|default('D')",
        "<text>|length|string",
        "<text>|first",
        "<text>|string|reverse",
        "<text>|list|join('-')",
        "<text>.splitlines()|join('|')",
        "<text>.split()|map('upper')|join(' ')",
        "<text>[:2]",
        "<text>[-1]",
        "('<' ~ <text> ~ <text>)",
        "(<text> + <text>)",
        "('%s;' % <text>)",
        "(<text> if <test> else <text>)",
        "(<text> if <test>)",
        "(<text> or <text>)",
        "(<text> and <text>)",
        "[<text>, <text>]|join(',')",
        "[<text>, <text>]|sort|first",
        "(m.meta.k if m.meta else '')",
    ],
    "number": [
        "1",
        "loop.index0",
        "ns.n",
        "m.content|length",
        "messages|length",
        "(<number> + <number>)",
        "(<number> - 1)",
        "(<number> % 2)",
        "(<number> // 2)",
        "<text>.count('a')",
        "<text>.find('a')",
        "(ns.list|length)",
        "(<number>|int)",
    ],
    "test": [
        "m.role == 'user'",
        "m.role == 'assistant'",
        "m.content",
        "m.content is string",
        "m.k is defined",
        "m.k is mapping",
        "m.k is iterable and m.k is not string",
        "m.k is none",
        "m.k",
        "m.n == 1",
        "m.n is sameas true",
        "m.n is integer",
        "m.n in [1, 2]",
        "'k' in m",
        "m.tool_calls",
        "m.tool_calls is defined and m.tool_calls is not none",
        "m.reasoning_content is string",
        "tools",
        "tools is not none",
        "ns.flag",
        "ns.n is odd",
        "loop.first",
        "loop.last",
        "loop.index0 > ns.last",
        "loop.nextitem.role == 'tool'",
        "loop.previtem is defined",
        "add_generation_prompt",
        "m.role in ['user', 'tool']",
        "'</think>' in m.content",
        "m.content.startswith('<tool_response>')",
        "m == messages[0]",
        "<text> == <text>",
        "<text> < <text>",
        "<text> in ['a', 'b', <text>]",
        "<text> in <text>",
        "<text> is lower",
        "<text>.endswith('\n')",
        "<number> > 2",
        "not <test>",
        "(<test> and <test>)",
        "(<test> or <test>)",
    ],
}
_SYMBOL = re.compile("<(" + "|".join(GRAMMAR) + ")>")


def expand(random: Random, symbol: str, depth: int) -> str:
    """Return a random expansion of `symbol`; depth: the most levels of nested symbols."""
    productions = GRAMMAR[symbol]
    if depth <= 0:
        productions = [one for one in productions if not _SYMBOL.search(one)] or productions[-1:]
    return _SYMBOL.sub(
        lambda found: expand(random, found[1], depth - 1), random.choice(productions)
    )


template_sources = st.builds(
    lambda random, depth: expand(random, "template", depth),
    st.randoms(use_true_random=False),
    st.integers(3, 5),
)


# Few texts, so that different dialogues often take the same branches of a template.
_texts = st.sampled_from(
    [
        *("a", "b", "A", "", " a ", "\n", "a\nb", "\n\na\n", "<b>&'\"", "%s {{ a }}", "a b a"),
        *(
            "<think>\na\n</think>\n\nb",
            "a</think>",
            "<tool_response>a</tool_response>",
            "<|im_end|>",
        ),
        *("Grüße\u2028\x85 ß", "e\u0301\ufeff", "\u00a0北京\u3000", "😀", "None", "1", "true"),
        *("\ufdd0", "\ufdd0" + "0\ufdd1a\ufdd2", "\ufdd3", "\ufdd6" + "0\ufdd7", "role"),
    ]
)
_scalars = _texts | st.sampled_from([True, False, None, 0, 1, 2, 1.0, -0.0, 0.5, 10**20, 1e300])
_names = st.sampled_from(["k", "a", "B", "content", "items", "function"])
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=5,
)
_arguments = st.dictionaries(_names, _values, max_size=3)
_calls = st.lists(
    st.builds(
        lambda name, arguments: {"function": {"name": name, "arguments": arguments}},
        st.sampled_from(["f", "g"]),
        _arguments | _arguments.map(json.dumps),
    ),
    min_size=1,
    max_size=3,
)
_fields = st.fixed_dictionaries(
    {},
    optional={
        "k": _values,
        "n": st.sampled_from([0, 1, True, False, 1.0, 2, 2.5]),
        "meta": _arguments,
        "name": _texts,
    },
)
_contents = _texts | st.lists(
    st.builds(lambda text: {"type": "text", "text": text}, _texts), min_size=1, max_size=2
)


@st.composite
def _messages(draw, role: str) -> dict:
    message = {"role": role, "content": draw(_texts)}
    if draw(st.integers(0, 2)) == 0:  # most messages are plain
        message |= {"content": draw(_contents), **draw(_fields)}
        if role == "assistant" and draw(st.booleans()):
            message |= {"tool_calls": draw(_calls)}
            message["content"] = draw(st.sampled_from([message["content"]] * 3 + [None]))
        if role == "tool" and draw(st.booleans()):
            message["content"] = draw(_values.filter(lambda value: value is not None))
        if role == "assistant" and draw(st.booleans()):
            message |= {"reasoning_content": draw(_texts)}
        if role == "assistant" and draw(st.integers(0, 3)) == 0:
            message |= {"train": False}
    return message


@st.composite
def rows(draw) -> dict:
    """Draw a row: mostly turns in order, perhaps after a system message; sometimes any roles."""
    if draw(st.integers(0, 3)):
        turns = draw(
            st.lists(
                st.sampled_from(
                    [["user", "assistant"]] * 3
                    + [
                        ["user", "assistant", "tool", "assistant"],
                        ["user", "assistant", "tool", "tool"],
                    ]
                ),
                min_size=1,
                max_size=3,
            )
        )
        roles = draw(st.sampled_from([[], ["system"]])) + [role for turn in turns for role in turn]
    else:
        any_role = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
        roles = draw(st.lists(any_role, min_size=1, max_size=5))
    row = {"messages": [draw(_messages(role)) for role in roles]}
    if draw(st.integers(0, 2)) == 0:
        function = {"name": draw(_texts) or "f", "parameters": draw(_arguments)}
        row["tools"] = [{"type": "function", "function": function}]
    return row
