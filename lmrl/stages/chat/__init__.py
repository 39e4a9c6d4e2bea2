"""Chat with a model: ``ChatSession`` answers, ``chat`` starts one."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.chat.stage import ChatSession, Reply, chat

__all__ = ["ChatSession", "Reply", "chat"]

__getattr__, __dir__ = lazy_names(__name__, {"lmrl.stages.chat.stage": ("ChatSession", "Reply", "chat")})
