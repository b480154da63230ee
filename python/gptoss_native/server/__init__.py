"""An HTTP server with OpenAI's API around one AsyncLLM. Needs the extra [server]: Starlette and uvicorn."""
