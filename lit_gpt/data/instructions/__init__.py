"""Convert instruction rows in common formats to conversations, and these to tokens with a mask of the answers."""

from lit_gpt.data.instructions.encoder import InstructionEncoder, LongRows, chat_tokenizer
from lit_gpt.data.instructions.forms import Conversation, conversation_of
from lit_gpt.data.instructions.preferences import Preference, PreferenceEncoder, preference_of
from lit_gpt.data.instructions.stdlib import StdlibInstructions

__all__ = [
    "Conversation",
    "InstructionEncoder",
    "LongRows",
    "Preference",
    "PreferenceEncoder",
    "StdlibInstructions",
    "chat_tokenizer",
    "conversation_of",
    "preference_of",
]
