"""How each chat template in ../shared/templates writes an assistant message, read by a person.

These facts are the part of the oracle (`tests/support/reference.py`) that no code computes. They
were copied from the sources of the templates, family by family.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Facts:
    """How a template writes an assistant message."""

    headers: tuple[str, ...]
    """The texts that may precede what the model writes; most prompts end in the first one."""
    ends: tuple[str, ...] = ()
    """The end-of-turn tokens, if the template has any."""
    ends_last: bool = True
    """Whether the last message of a conversation ends in one, too."""
    closing: str = ""
    """The text (or its start) after the whole conversation, which belongs to no turn."""
    next_headers: tuple[str, ...] = ()
    """The texts that may follow a message if the template has no end-of-turn tokens."""
    variables: tuple[tuple[str, str], ...] = ()
    """The variables that the template needs in addition to messages and tools."""
    arguments_as_text: bool = False
    """Whether it joins the arguments of a call to text, so that they must be text."""
    null_content: bool = False
    """Whether it writes a message that only calls tools properly only if its content is null."""
    values_as_json: tuple[str, ...] = ()
    """The types (`dict`, `int`) of a tool's result that it writes as JSON."""
    only_parts: tuple[str, ...] = ()
    """The roles whose content it reads as a list of parts alone."""
    stops: tuple[str, ...] | None = None
    """The tokens at which its model stops; None if these are the end-of-turn tokens."""
    next_stops: tuple[str, str] = ("", "")
    """The text up to a stop token that follows an answer or a call, but is not part of it."""
    switches: tuple[str, ...] = ()
    """The variables that change how the generation prompt ends, in the order in which they are
    read."""
    scaffold: tuple[str, str] | None = None
    """The opening and the closing of the empty reasoning in which a generation prompt ends, without
    white space; None if no prompt has one."""

    def name_stops(self) -> tuple[str, ...]:
        """Return the tokens at which the model stops."""
        return (EOS, *(self.ends if self.stops is None else self.stops))


BOS, EOS = "<|bos|>", "<|eos|>"
CHATML = Facts(("<|im_start|>assistant\n",), ("<|im_end|>",))
THINK = ("<think>", "</think>")
QWEN_3 = replace(CHATML, switches=("enable_thinking",), scaffold=THINK)
MINIMIND = replace(CHATML, switches=("open_thinking",), scaffold=THINK)
COHERE = Facts(("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",), ("<|END_OF_TURN_TOKEN|>",))
COMMAND_A = replace(COHERE, closing="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")
DEEPSEEK = Facts(("<｜Assistant｜>", "<｜tool▁outputs▁end｜>"), ("<｜end▁of▁sentence｜>",))
EXAONE = Facts(("[|assistant|]",), ("[|endofturn|]",))
GEMMA = Facts(("<start_of_turn>model\n",), ("<end_of_turn>",))
GEMMA_4 = Facts(
    ("<|turn>model\n", "<tool_response|>"),
    ("<turn|>", "<|tool_response>"),
    values_as_json=("int",),
    switches=("enable_thinking",),
    scaffold=("<|channel>thought", "<channel|>"),
)
DIFFUSION_GEMMA = replace(GEMMA_4, headers=("<|turn>model\n",), switches=(), scaffold=None)
GLM = Facts(
    ("<|assistant|>",),
    (),
    next_headers=("<|user|>", "<|observation|>", "<|assistant|>"),
    stops=("<|user|>", "<|observation|>"),
    next_stops=("<|user|>", "<|observation|>"),
    switches=("enable_thinking",),
)
GLM_TRAINING = replace(GLM, ends=("<|user|>", "<|observation|>"), next_stops=("", ""))
GPT_OSS = Facts(
    ("<|start|>assistant",),
    ("<|return|>", "<|call|>", "<|end|>"),
    values_as_json=("dict", "int"),
    stops=("<|return|>", "<|call|>"),
)
IDEFICS = Facts(
    ("Assistant:",),
    ("<end_of_utterance>",),
    only_parts=("system", "developer", "user", "assistant", "tool"),
)
LLAMA_3 = Facts(
    ("<|start_header_id|>assistant<|end_header_id|>\n\n",), ("<|eot_id|>", "<|eom_id|>")
)
LLAVA = Facts(("ASSISTANT:",), (), next_headers=("USER:", "ASSISTANT:", "TOOL:"))
LLAVA_NEXT = Facts(("[/INST]",), ("</s>",), only_parts=("system", "user", "assistant"))
MISTRAL = Facts(("[/INST]", "[/TOOL_RESULTS]"), (EOS,))
PHI = Facts(("<|assistant|>\n",), ("<|end|>",))
PHI_CLOSED = replace(PHI, closing=EOS)

FACTS: dict[str, Facts] = {
    "axolotl/alpaca.jinja": Facts(("### Response:\n",), (EOS,)),
    "axolotl/aya.jinja": COHERE,
    "axolotl/chatml.jinja": CHATML,
    "axolotl/cohere.jinja": COHERE,
    "axolotl/command_a.jinja": COMMAND_A,
    "axolotl/command_a_rag.jinja": replace(COMMAND_A, values_as_json=("dict", "int")),
    "axolotl/command_a_tool_use.jinja": replace(COMMAND_A, values_as_json=("dict", "int")),
    "axolotl/deepseek_v2.jinja": Facts(("<｜Assistant｜>",), (EOS,)),
    "axolotl/deepseek_v3.jinja": replace(DEEPSEEK, arguments_as_text=True),
    "axolotl/exaone.jinja": EXAONE,
    "axolotl/exaone4.jinja": replace(
        EXAONE,
        headers=("[|assistant|]\n",),
        values_as_json=("dict", "int"),
        switches=("enable_thinking",),
        scaffold=THINK,
    ),
    "axolotl/falcon_h1.jinja": CHATML,
    "axolotl/gemma.jinja": GEMMA,
    "axolotl/gemma3.jinja": GEMMA,
    "axolotl/gemma3n.jinja": GEMMA,
    "axolotl/gemma4.jinja": GEMMA_4,
    "axolotl/gemma4_unified.jinja": GEMMA_4,
    "axolotl/jamba.jinja": Facts(("<|bom|><|assistant|>",), ("<|eom|>",)),
    "axolotl/llama3.jinja": LLAMA_3,
    "axolotl/llama3_2_vision.jinja": replace(LLAMA_3, values_as_json=("dict",)),
    "axolotl/llama4.jinja": Facts(
        ("<|header_start|>assistant<|header_end|>\n\n",),
        ("<|eot|>", "<|eom|>"),
        values_as_json=("dict",),
    ),
    "axolotl/llava.jinja": LLAVA,
    # Its end-of-turn token is written only after the last turn.
    "axolotl/metharme.jinja": Facts(("<|model|>",), (EOS,), next_headers=("<|user|>", "<|model|>")),
    "axolotl/mistral_v1.jinja": MISTRAL,
    "axolotl/mistral_v2v3.jinja": MISTRAL,
    "axolotl/mistral_v3_tekken.jinja": MISTRAL,
    "axolotl/mistral_v7_tekken.jinja": MISTRAL,
    "axolotl/nemotron_h.jinja": CHATML,
    "axolotl/phi_3.jinja": PHI,
    "axolotl/phi_35.jinja": PHI,
    "axolotl/phi_4.jinja": Facts(("<|im_start|>assistant<|im_sep|>",), ("<|im_end|>",)),
    "axolotl/pixtral.jinja": MISTRAL,
    "axolotl/qwen2_vl.jinja": CHATML,
    "axolotl/qwen3.jinja": QWEN_3,
    "axolotl/qwen3_5.jinja": QWEN_3,
    "axolotl/qwen_25.jinja": CHATML,
    # No end-of-turn token after the last message, unless `training_prompt` is set.
    "llama.cpp/Apriel-1.6-15b-Thinker-fixed.jinja": Facts(
        ("<|begin_assistant|>",),
        ("<|end|>",),
        ends_last=False,
        next_stops=("\n<|end|>", "\n<|end|>"),
    ),
    "llama.cpp/ByteDance-Seed-OSS.jinja": Facts(("<seed:bos>assistant\n",), ("<seed:eos>",)),
    "llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use.jinja": replace(
        COMMAND_A,
        ends=("<|END_OF_TURN_TOKEN|>", "]```"),  # the token is missing after tool calls
        closing="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write 'Action:'",
    ),
    "llama.cpp/GLM-4.6.jinja": GLM,
    "llama.cpp/GLM-5.2.jinja": GLM,
    "llama.cpp/GigaChat3.1-10B-A1.8B.jinja": Facts(
        ("assistant<|role_sep|>\n",), ("<|message_sep|>",)
    ),
    "llama.cpp/Kimi-K2-Instruct.jinja": Facts(
        ("<|im_assistant|>assistant<|im_middle|>",), ("<|im_end|>",)
    ),
    "llama.cpp/LFM2-8B-A1B.jinja": CHATML,
    "llama.cpp/MiMo-VL.jinja": CHATML,
    "llama.cpp/Mistral-Small-3.2-24B-Instruct-2506.jinja": MISTRAL,
    "llama.cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja": CHATML,
    "llama.cpp/Qwen-QwQ-32B.jinja": QWEN_3,
    "llama.cpp/Qwen-Qwen3-0.6B.jinja": QWEN_3,
    "llama.cpp/Qwen3.5-4B.jinja": QWEN_3,
    "llama.cpp/StepFun3.5-Flash.jinja": CHATML,
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": replace(
        DEEPSEEK, null_content=True, switches=("enable_thinking",), scaffold=THINK
    ),
    "llama.cpp/deepseek-ai-DeepSeek-V3.2.jinja": replace(
        DEEPSEEK,
        headers=("<｜Assistant｜>", "</function_results>\n\n"),
        switches=("thinking", "enable_thinking"),
        scaffold=THINK,
    ),
    "llama.cpp/fireworks-ai-llama-3-firefunction-v2.jinja": replace(
        LLAMA_3, closing=LLAMA_3.headers[0], variables=(("functions", "[]"), ("datetime", "today"))
    ),
    "llama.cpp/google-gemma-4-31B-it-interleaved.jinja": replace(GEMMA_4, values_as_json=()),
    "llama.cpp/ibm-granite-granite-3.3-2B-Instruct.jinja": Facts(
        ("<|start_of_role|>assistant<|end_of_role|>",), ("<|end_of_text|>",)
    ),
    "llama.cpp/llama-cpp-rwkv-world.jinja": Facts(
        ("Assistant:",),
        (),
        next_headers=("User:", "Assistant:", "System:"),
        switches=("enable_thinking",),
        scaffold=THINK,
    ),
    "llama.cpp/meetkai-functionary-medium-v3.2.jinja": replace(
        LLAMA_3,
        headers=("<|start_header_id|>assistant<|end_header_id|>\n\n>>>",),
        arguments_as_text=True,
    ),
    "llama.cpp/meta-llama-Llama-3.2-3B-Instruct.jinja": replace(LLAMA_3, values_as_json=("dict",)),
    "llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja": PHI_CLOSED,
    "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja": MISTRAL,
    "llama.cpp/openai-gpt-oss-120b.jinja": GPT_OSS,
    "llama.cpp/unsloth-Apriel-1.5.jinja": Facts(("<|assistant|>\n",), (EOS,)),
    "trl/cohere.jinja": COHERE,
    "trl/cohere2.jinja": COHERE,
    "trl/cohere2_training.jinja": COHERE,
    "trl/cohere_training.jinja": COHERE,
    "trl/deepseekv3.jinja": replace(DEEPSEEK, arguments_as_text=True),
    "trl/deepseekv3_training.jinja": DEEPSEEK,
    "trl/diffusion_gemma.jinja": DIFFUSION_GEMMA,
    "trl/diffusion_gemma_training.jinja": DIFFUSION_GEMMA,
    "trl/gemma.jinja": GEMMA,
    "trl/gemma3.jinja": GEMMA,
    "trl/gemma3_training.jinja": GEMMA,
    "trl/gemma_training.jinja": GEMMA,
    "trl/glm4moe.jinja": GLM,
    "trl/glm4moe_training.jinja": GLM_TRAINING,
    "trl/gptoss.jinja": GPT_OSS,
    "trl/gptoss_training.jinja": GPT_OSS,
    "trl/idefics3.jinja": IDEFICS,
    "trl/idefics3_training.jinja": IDEFICS,
    "trl/lfm2.jinja": CHATML,
    "trl/lfm2_2_5.jinja": CHATML,
    "trl/lfm2_training.jinja": CHATML,
    "trl/llama3.jinja": LLAMA_3,
    "trl/llama3_1.jinja": replace(LLAMA_3, values_as_json=("dict",)),
    "trl/llama3_2.jinja": replace(LLAMA_3, values_as_json=("dict",)),
    "trl/llama3_training.jinja": LLAMA_3,
    "trl/llava_next.jinja": LLAVA_NEXT,
    "trl/llava_next_training.jinja": LLAVA_NEXT,
    "trl/nemotron_3_nano.jinja": QWEN_3,
    "trl/nemotron_3_nano_training.jinja": QWEN_3,
    "trl/nemotron_3_super.jinja": QWEN_3,
    "trl/nemotron_3_super_training.jinja": QWEN_3,
    "trl/nemotron_3_ultra.jinja": QWEN_3,
    "trl/nemotron_3_ultra_training.jinja": QWEN_3,
    "trl/phi3.jinja": PHI_CLOSED,
    "trl/phi3_5.jinja": PHI_CLOSED,
    "trl/phi3_5_training.jinja": PHI_CLOSED,
    "trl/phi3_training.jinja": PHI_CLOSED,
    "trl/qwen2_5.jinja": CHATML,
    "trl/qwen2_5_training.jinja": CHATML,
    "trl/qwen2_5_vl.jinja": CHATML,
    "trl/qwen2_5_vl_training.jinja": CHATML,
    "trl/qwen3.jinja": QWEN_3,
    "trl/qwen3_5_nothink.jinja": QWEN_3,
    "trl/qwen3_5_nothink_training.jinja": QWEN_3,
    "trl/qwen3_5_think.jinja": QWEN_3,
    "trl/qwen3_5_think_training.jinja": QWEN_3,
    "trl/qwen3_6.jinja": QWEN_3,
    "trl/qwen3_6_training.jinja": QWEN_3,
    "trl/qwen3_instruct_2507.jinja": CHATML,
    "trl/qwen3_instruct_2507_training.jinja": CHATML,
    "trl/qwen3_training.jinja": QWEN_3,
    "trl/qwen3_vl.jinja": CHATML,
    "trl/qwen3_vl_training.jinja": CHATML,
}
